"""Language models whose conserved charges are known before the run: a twin with or without a tied embedding or adapters, the embedded base, a folder.

Shape letters: B batch, T tokens, V states of the chain.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from knowhow.experiments.language import Language, chain, decoder, next_token, walks
from knowhow.experiments.system import Drawn, System
from knowhow.model.charges import ledger
from knowhow.model.load import load
from knowhow.model.quiet import quiet


def charges(
    seed: int, *, model: str = "twin", states: int = 32, rows: int = 16, length: int = 48, tied: bool = False, lora: int = 0, double: bool = False
) -> System:
    """`model`: twin (a small Llama of random weights), or what model/load.py takes; `lora`: rank of adapters on every linear layer, the rest frozen;
    `double`: in float64, where rounding hides nothing.

    Tokens are walks of a random chain whose states are spread over the vocabulary. Facts: `charges.KIND`, how many charges of each kind are derived, and
    `charges.excluded`, how many are not."""
    made = decoder(seed, vocab=states, tied=tied) if model == "twin" else load(model).model
    if lora:
        torch.manual_seed(seed)
        with quiet():
            made = get_peft_model(made, LoraConfig(r=lora, lora_alpha=2 * lora, target_modules="all-linear"))
    if double:
        made = made.double()
    entries = made.get_input_embeddings().weight.shape[0]
    ids_V = torch.arange(states) * (entries // states)
    chain_VV = chain(seed, states)
    batches = Drawn(lambda generator: next_token(ids_V[walks(chain_VV, rows, length + 1, generator)]), seed)
    found = ledger(made)
    facts = {f"charges.{kind}": float(count) for kind, count in found.counts().items()}
    return System(made, Language(), batches, {**facts, "charges.excluded": float(len(found.excluded))})
