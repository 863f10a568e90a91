"""A small Llama that knows one Markov chain, with LoRA matrices, and rows of another chain to learn.

Shape letters: B batch, T tokens, O outputs and I inputs of a linear layer, R rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from knowhow.experiments.language import Language, chain, decoder, next_token, walks
from knowhow.experiments.system import Drawn, System
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.maths.subspaces import leading, overlap
from knowhow.model.quiet import quiet
from knowhow.types import Batch, Measurement

VOCAB = 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@cache
def _taught(seed: int, steps: int) -> dict[str, torch.Tensor]:
    """Weights of a decoder after `steps` of AdamW on the chain of `seed`."""
    model = decoder(seed, vocab=VOCAB)
    table_VV = chain(seed, VOCAB)
    batches = Drawn(lambda generator: next_token(walks(table_VV, 16, 33, generator)), seed)
    spec = LoopSpec(steps, precision="float32", attention="torch")
    for _ in train(model, Language(), batches, Optim(model, OptimSpec(3e-3)), schedule("constant", steps, warmup=0.1), spec):
        pass
    return {name: value.clone() for name, value in model.state_dict().items()}


def taught(seed: int, steps: int) -> LlamaForCausalLM:
    """A decoder that has learnt the chain of `seed` for so many steps."""
    model = decoder(seed, vocab=VOCAB)
    model.load_state_dict(_taught(seed, steps))
    return model


def lora_decoder(seed: int, *, rank: int = 4, scale: float = 2.0, rows: int = 48, fixed: bool = True, taught_steps: int = 100) -> System:
    """LoRA on every linear layer of a taught decoder, to learn another chain; `fixed`: the same rows at every step.

    Facts: `base_loss`, `same_rows` 1 when fixed; at each adapted module, on the first step's rows, `lora_gradient` |∂L/∂B| at the start and
    `lora_overlap`, the share of its columns' span that lies in the top-`rank` left singular space of the module's own gradient."""
    model = taught(seed, taught_steps)
    torch.manual_seed(seed + 1)
    config = LoraConfig(r=rank, lora_alpha=round(rank * scale), target_modules=list(TARGETS), lora_dropout=0.0, bias="none")
    with quiet():
        adapted: Any = get_peft_model(model, config)
    table_VV = chain(seed + 500, VOCAB)

    def draw(generator: torch.Generator) -> Batch:
        return next_token(walks(table_VV, rows, 33, generator))

    first = draw(torch.Generator().manual_seed(seed * 1_000_003 + 1))
    batches = Drawn((lambda _: first) if fixed else draw, seed)
    loss, sites = _measured(adapted, first, rank)
    return System(adapted, Language(), batches, {"base_loss": loss, "same_rows": float(fixed)}, sites)


def _measured(model: torch.nn.Module, batch: Batch, rank: int) -> tuple[float, tuple[Measurement, ...]]:
    """The loss on `batch`, and what the first gradient says of each adapted module."""
    named = dict(model.named_parameters())
    modules = [name.removesuffix(".base_layer.weight") for name in named if name.endswith(".base_layer.weight")]
    full = [named[f"{module}.base_layer.weight"] for module in modules]
    for weight in full:
        weight.requires_grad_(True)
    loss = Language()(model, batch)[0] / Language().units(batch)
    gradients = torch.autograd.grad(loss, [*full, *(named[f"{module}.lora_B.default.weight"] for module in modules)])
    for weight in full:
        weight.requires_grad_(False)
    sites = []
    for module, gradient_OI, low_OR in zip(modules, gradients[: len(full)], gradients[len(full) :], strict=True):
        site = module.split("model.")[-1]
        sites.append(Measurement(site, "lora_gradient", float(low_OR.norm()), "nats", int(low_OR.numel())))
        sites.append(Measurement(site, "lora_overlap", overlap(low_OR, leading(gradient_OI, rank)), "share", rank))
    return float(loss.detach()), tuple(sites)
