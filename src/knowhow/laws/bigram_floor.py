"""The loss on a chain comes down to its conditional entropy, and it does not stop at the tokens' frequencies on the way.

**Statement** On fresh rows of a Markov chain the loss of a language model falls to H2 = −Σ π_i P_ij ln P_ij nats per token, never below, known before
training; and no plateau at the unigram entropy H1 = −Σ π_j ln π_j comes first. This is how what is learnt follows from the equations of gradient-based
learning: cross-entropy is entropy plus a divergence, so the data alone say where the loss ends, and the spectrum of the data's statistics says in which order
it falls.

**Derivation** For any model q that sees the past, E[−ln q(x_t | past)] = H(x_t | past) + E[KL(p(· | past) ‖ q)] ≥ H(x_t | past), with equality only for q =
p. For a chain of one token of memory H(x_t | past) = H(x_t | x_{t−1}) = H2: the floor. (On rows used twice the bound is gone: the model may learn the rows by
heart.) A model with a table of logits W_ij can reach it, and the problem is convex in W. For the order: at W = 0 the gradient is −∂L/∂W_ij = π_i (P_ij −
1/V), for every i at the scale of π_i. Its part common to all rows is the unigram part, π_i (π_j − 1/V), the rest π_i (P_ij − π_j) the bigram part. A plateau
at H1 needs the first to be much the faster one, that is ‖π_j − 1/V‖ much larger than ‖P_ij − π_j‖ in the model's own metric; in a table each row is learnt by
itself at a rate π_i, with no separate slow mode, so both parts move in the same time and the loss passes through H1 without stopping. The plateaus of
in-context chains (Edelman 2024) come from a circuit that must be composed, a product of factors; a plain bigram needs a single one.

**Assumptions** Fresh rows at every step; the true memory is one token; a model that can hold V² numbers; long enough (the rate must come down at the end,
else noise in the weights adds to the floor).

**Where it fails** With two tokens of memory the loss falls below H2 (a control: the floor is then H3). The bound is on the mean: a finite sample scatters
about it by σ/√n. Transformers of limited width stay above it. A constant rate of 1e-2 left 1.1% in a first measurement; the plateau is tied to the claim that
frequencies and transitions are learnt at once, and would come back with transitions much weaker than frequencies.

**Source** Shannon 1948 (Gibbs' inequality); Edelman et al. 2024 (arXiv 2402.11004) for the stages that in-context chains do have; Saxe 2014 (arXiv 1312.6120)
for modes and their rates.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "bigram-floor"
FLOOR = "mean loss in the last tenth of the steps, nats per token"
STAY = "loss at which the first quarter of the steps stays longest (bins of 0.1 nats)"
TOLERANCE = 0.01
BIN = 0.1
APART = 0.3
LEAST = 50


def _predict(diagnosis: Diagnosis, floor: str) -> list[Prediction]:
    value = fact(diagnosis, floor)
    return [] if value is None else [predicted(NAME, FLOOR, value, value * (1 - TOLERANCE), value * (1 + TOLERANCE), diagnosis)]


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """Nothing unless the rows' entropies are known; where the loss lingers on the way is foretold where the two entropies lie apart."""
    found = _predict(diagnosis, "bigram_entropy")
    unigram, bigram = fact(diagnosis, "unigram_entropy"), fact(diagnosis, "bigram_entropy")
    if unigram is not None and bigram is not None and unigram - bigram > APART:
        found.append(predicted(NAME, STAY, bigram, bigram * (1 - TOLERANCE), (unigram + bigram) / 2, diagnosis))
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    losses = values(trace, "loss")
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        if len(losses) < LEAST:
            found.append(not_applicable(prediction, f"{len(losses)} steps are too few for a floor"))
        elif prediction.quantity == FLOOR:
            found.append(compared(prediction, statistics.fmean(losses[-(len(losses) // 10) :])))
        else:
            found.append(compared(prediction, _longest(losses[: len(losses) // 4])))
    return found


def _longest(losses: Sequence[float]) -> float:
    """Mean of the losses in the fullest bin."""
    fullest, _ = Counter(int(loss // BIN) for loss in losses).most_common(1)[0]
    return statistics.fmean(loss for loss in losses if int(loss // BIN) == fullest)


def frequencies_alone(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The wrong formula: the floor is the entropy of the tokens' frequencies."""
    return _predict(diagnosis, "unigram_entropy")


def plateau(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The stage that plain bigrams do not show: a stay at the unigram entropy."""
    unigram = fact(diagnosis, "unigram_entropy")
    return [] if unigram is None else [predicted(NAME, STAY, unigram, unigram - BIN, unigram + BIN, diagnosis)]


def floor_alone(diagnosis: Diagnosis) -> Sequence[Prediction]:
    return _predict(diagnosis, "bigram_entropy")


def experiment(memory: int = 1) -> Experiment:
    return Experiment("bigram-chain", 450, {}, options={"memory": memory}, optimizer={"lr": 1e-2}, schedule="cosine", warmup=0.02)


LAW = Law(
    NAME,
    __doc__,
    "dynamics",
    "the last tenth's mean loss within 1% of H2; the longest early stay is nearer to H2 than to H1",
    predict,
    score,
    (experiment(),),
    (
        Control("floor at the unigram entropy", "another entropy of the same rows must not pass", predict=frequencies_alone),
        Control("plateau at the unigram entropy", "a stage that does not appear must not be found", predict=plateau),
        Control("two tokens of memory", "where the past says more than the last token, the loss must fall below H2", experiment(memory=2), predict=floor_alone),
    ),
)
