"""Linear read-outs: of the states that a frozen transformer's head reads, of n-grams, of both at once.

Shape letters: N rows, D width, F n-grams, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from sklearn.svm import LinearSVC

from knowhow.model.infer import like_lengths, right_padded
from knowhow.model.load import head_modules
from knowhow.model.loaded import Loaded
from knowhow.protocols import Progress

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Linear:
    """Logits NC = features NF @ weight_FC + bias_C."""

    weight_FC: np.ndarray
    bias_C: np.ndarray

    def __call__(self, features_NF: sparse.csr_matrix | np.ndarray) -> np.ndarray:
        return np.asarray(features_NF @ self.weight_FC + self.bias_C)


@dataclass(frozen=True, slots=True)
class Scale:
    """States less their mean, of unit mean square length, over the rows that it was fitted on."""

    mean_D: np.ndarray
    length: float

    def __call__(self, states_ND: np.ndarray) -> np.ndarray:
        return (states_ND - self.mean_D) / self.length

    def undone(self, linear: Linear) -> Linear:
        """What `linear` says of scaled states, as a function of the states."""
        weight_DC = linear.weight_FC / self.length
        return Linear(weight_DC, linear.bias_C - self.mean_D @ weight_DC)


def scale(states_ND: np.ndarray, *, centred: bool) -> Scale:
    """`centred`: false where nothing can add the mean's part back (a head without biases)."""
    mean_D = states_ND.mean(0) if centred else np.zeros(states_ND.shape[1], states_ND.dtype)
    return Scale(mean_D, float(np.sqrt(((states_ND - mean_D) ** 2).sum(1).mean())) or 1.0)


def fit(features_NF: sparse.csr_matrix | np.ndarray, gold: np.ndarray, weights_N: np.ndarray, classes: int, *, strength: float, bias: bool) -> Linear:
    """Each label against the others by squared hinge loss (`gold`: index N, or 0/1 NC for many labels). A label that no row has, or every row, is constant."""
    features_NF = features_NF.astype(np.float64)  # what the solver works in: converted once, not for each label
    targets_NC = np.eye(classes)[gold] if gold.ndim == 1 else gold
    weight_FC, bias_C = np.zeros((features_NF.shape[1], classes)), np.zeros(classes)
    for label in range(classes):
        held_N = targets_NC[:, label] == 1
        if held_N.all() or not held_N.any():
            bias_C[label] = 1.0 if held_N.all() else -1.0
            continue
        model = LinearSVC(C=strength, dual="auto", fit_intercept=bias, random_state=0, max_iter=2000)
        model.fit(features_NF, held_N, sample_weight=weights_N / weights_N.mean())
        weight_FC[:, label], bias_C[label] = model.coef_[0], float(np.squeeze(model.intercept_))
    return Linear(weight_FC, bias_C)


def head_of(loaded: Loaded) -> torch.nn.Linear:
    """The last linear module of a classifier."""
    last = dict(loaded.model.named_children())[head_modules(loaded.model)[-1]]
    found = [module for module in last.modules() if isinstance(module, torch.nn.Linear)]
    return found[-1]


@torch.no_grad()
def states(loaded: Loaded, tokens: Sequence[Sequence[int]], progress: Progress | None = None) -> np.ndarray:
    """What the head reads of each row of tokens, ND float32."""
    read: list[torch.Tensor] = []
    found_ND = np.zeros((len(tokens), head_of(loaded).in_features), np.float32)
    hook = head_of(loaded).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    done = 0
    try:
        for rows in like_lengths([len(row) for row in tokens], TOKENS):
            tokens_BT, mask_BT = right_padded(loaded, [tokens[row] for row in rows])
            loaded.model(input_ids=tokens_BT, attention_mask=mask_BT)
            states = read.pop()
            last_B = torch.tensor([len(tokens[row]) - 1 for row in rows])
            found_ND[rows] = (states[torch.arange(len(rows)), last_B] if states.ndim == 3 else states).float().cpu().numpy()
            done += len(rows)
            if progress is not None:
                progress("states", done, len(tokens))
    finally:
        hook.remove()
    return found_ND


def set_head(loaded: Loaded, linear: Linear) -> None:
    """Makes the model's head give these logits; a head without biases leaves them out."""
    head = head_of(loaded)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.ascontiguousarray(linear.weight_FC.T)))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(linear.bias_C))
