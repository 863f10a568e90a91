"""Small language models on sequences whose statistics are known.

Shape letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from knowhow.experiments.system import Drawn, System
from knowhow.types import Batch


@dataclass(frozen=True)
class Language:
    """−log p(next token), summed, through the model's own logits: differentiable twice, unlike the training objective's chunks."""

    name: str = "language"

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        logits_BTV = model(input_ids=batch.tokens_BT, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1).float(), batch.targets_BT.flatten(), reduction="sum"), {}

    def units(self, batch: Batch) -> float:
        return float((batch.targets_BT != -100).sum())


def decoder(seed: int, *, vocab: int, layers: int = 2, width: int = 64, heads: int = 4, kv_heads: int = 2, tied: bool = False) -> LlamaForCausalLM:
    """A Llama of random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def chain(seed: int, vocab: int, *, sharpness: float = 1.5) -> torch.Tensor:
    """A random Markov chain VV: rows are the softmax of `sharpness` × normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(vocab, vocab, generator=generator), -1)


def walks(chain_VV: torch.Tensor, rows: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Sequences BT of the chain, from uniform starts."""
    tokens = [torch.randint(len(chain_VV), (rows,), generator=generator)]
    for _ in range(length - 1):
        tokens.append(torch.multinomial(chain_VV[tokens[-1]], 1, generator=generator)[:, 0])
    return torch.stack(tokens, 1)


def entropy_rate(chain_VV: torch.Tensor) -> float:
    """Nats per token that even the right model cannot know: Σ π_i H(row i), π the stationary distribution."""
    share_V = torch.full((len(chain_VV),), 1 / len(chain_VV), dtype=torch.float64)
    for _ in range(500):
        share_V = share_V @ chain_VV.double()
    return float(-(share_V[:, None] * chain_VV.double() * chain_VV.double().log()).sum())


def next_token(tokens_BT: torch.Tensor) -> Batch:
    """Rows with every next token as target."""
    return Batch(tokens_BT[:, :-1].contiguous(), torch.ones_like(tokens_BT[:, :-1]), tokens_BT[:, 1:].contiguous())


def markov_decoder(seed: int, *, vocab: int = 32, rows: int = 16, length: int = 48, layers: int = 2, width: int = 64, tied: bool = False) -> System:
    """A small Llama on walks of a random chain. Facts: `entropy_rate` in nats per token, `vocab`."""
    chain_VV = chain(seed, vocab)
    batches = Drawn(lambda generator: next_token(walks(chain_VV, rows, length + 1, generator)), seed)
    return System(
        decoder(seed, vocab=vocab, layers=layers, width=width, tied=tied), Language(), batches, {"entropy_rate": entropy_rate(chain_VV), "vocab": vocab}
    )
