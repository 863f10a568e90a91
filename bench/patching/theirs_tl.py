"""TransformerLens' side, in an environment of its own that knows nothing of knowhow: `python theirs_tl.py ARGUMENTS.json` prints one line of JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from side import answer, keep, measured, rows
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post", "attn.q": "attn.hook_q", "attn.k": "attn.hook_k",
    "attn.v": "attn.hook_v", "attn.pattern": "attn.hook_pattern", "attn.z": "attn.hook_z", "mlp.out": "hook_mlp_out",
}  # fmt: skip
ROTATED = {"attn.q": "attn.hook_rot_q", "attn.k": "attn.hook_rot_k"}
WARMED = 2


def load(asked: Mapping[str, Any]) -> TransformerBridge:
    """Weights as they are (no folding, no centring); the bridge asks for eager attention."""
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, attn_implementation="eager").eval()
    bridge = TransformerBridge.boot_transformers(asked["model"], device="cpu", hf_model=model, tokenizer=AutoTokenizer.from_pretrained(asked["model"]))
    return bridge.eval()


def difference(asked: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits 1TV → a number."""
    first, second = asked["pair"]
    return lambda logits: logits[0, -1, first] - logits[0, -1, second]


@torch.no_grad()
def swept(model: TransformerBridge, asked: Mapping[str, Any], cells: int | None = None) -> torch.Tensor:
    """Metric LP; of the first `cells` alone when given."""
    base, source = rows(asked)
    _, cache = model.run_with_cache(source, names_filter=lambda name: name.endswith("hook_resid_pre"))
    if cells is None:
        return patching.get_act_patch_resid_pre(model, base, cache, difference(asked))
    index = pd.DataFrame([(0, position) for position in range(cells)], columns=["layer", "pos"])
    setter = patching.layer_pos_patch_setter
    return patching.generic_activation_patch(model, base, cache, difference(asked), setter, "resid_pre", index_df=index)


def parity(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    model, (base, source), patch = load(asked), rows(asked), asked["patch"]
    names = NAMES | (ROTATED if asked["family"] == "llama" else {})
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        logits, cache = model.run_with_cache(base)
        if asked["kinds"]:
            found["logits"] = logits
            for layer, kind in itertools.product(range(model.cfg.n_layers), asked["kinds"]):
                found[f"layers.{layer}.{kind}"] = cache[f"blocks.{layer}.{names[kind]}"]
            found["sweep"] = swept(model, asked)
        _, given = model.run_with_cache(source)

        def stream(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value[:, patch["position"]] = given[hook.name][:, patch["position"]]
            return value

        def z(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value[:, :, patch["head"]] = given[f"blocks.{patch['layer']}.attn.hook_z"][:, :, patch["head"]]
            return value

        found["patched stream"] = model.run_with_hooks(base, fwd_hooks=[(f"blocks.{patch['layer']}.hook_resid_pre", stream)])
        found["patched z"] = model.run_with_hooks(base, fwd_hooks=[(f"blocks.{patch['layer']}.attn.hook_z", z)])
    if asked["kinds"]:
        found["attribution"] = attribution(model, asked, cache, given)
    return keep(asked, found)


def attribution(model: TransformerBridge, asked: Mapping[str, Any], cache: Any, given: Any) -> torch.Tensor:
    """Gradient × (source - base) of the stream, LT."""
    slopes: dict[str, torch.Tensor] = {}
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    kept = [(name, lambda slope, hook, name=name: slopes.__setitem__(name, slope.detach().clone())) for name in names]
    with model.hooks(bwd_hooks=kept):
        difference(asked)(model(rows(asked)[0])).backward()
    return torch.stack([((given[name] - cache[name]) * slopes[name]).sum(-1)[0] for name in names])


def speed(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    model = load(asked)
    swept(model, asked, WARMED)
    return measured(lambda: swept(model, asked))


if __name__ == "__main__":
    answer({"parity": parity, "speed": speed})
