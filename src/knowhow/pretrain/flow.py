"""`knowhow pretrain`: a small Llama-type base from text and a domain's unlabelled traces, with the same loop as every specialist.

Stages, each kept in the run folder and never repeated: tokenizer → streams → train → export.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knowhow.adapt.lm import NextToken
from knowhow.data.batch import TokenBudget
from knowhow.data.windows import Chained, Together, Windows, documents
from knowhow.errors import Interrupted, UsageError
from knowhow.files import append_jsonl, read_jsonl, write_atomic, write_json, writing
from knowhow.loop import checkpoint
from knowhow.loop.machine import repeatable_device
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.model.quiet import quiet
from knowhow.observe.life import Life
from knowhow.pretrain.corpora import END, PAD, stream_of, tokenizer_of
from knowhow.pretrain.measure import Streams, against_ngrams, card, looks
from knowhow.protocols import Batches, Observer, Progress
from knowhow.recipe import PretrainRecipe
from knowhow.types import StepInfo
from knowhow.workspace import nothing_from_nothing


@dataclass(frozen=True, slots=True)
class Scene:
    """What can be watched, before the first step: the model and what it is trained on. Tokens of each corpus as one array."""

    recipe: PretrainRecipe
    model: LlamaForCausalLM
    tokenizer: Tokenizer
    streams: Streams
    valid: Streams
    steps: int


Watch = Callable[[Scene], Sequence[Observer]]


def nobody(scene: Scene) -> Sequence[Observer]:
    """No observer but the base's own (observe/life.py)."""
    return ()


def pretrain(recipe: PretrainRecipe, *, run: Path, root: Path, progress: Progress, watch: Watch = nobody) -> Path:
    """Make the base described by `recipe` in `run`; going on where an earlier call stopped. `watch`: who looks besides. Returns the model folder."""
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    with nothing_from_nothing(run, lambda: (run / "study").is_dir() or checkpoint.find(run / "checkpoint") is not None):
        return _make(recipe, run, root, progress, watch)


def _make(recipe: PretrainRecipe, run: Path, root: Path, progress: Progress, watch: Watch) -> Path:
    tokenizer = tokenizer_of(recipe, run, root, progress)
    streams = {name: stream_of(name, spec, tokenizer, run, root, progress) for name, spec in recipe.corpora.items()}
    valid = {name: stream_of(f"valid-{name}", spec, tokenizer, run, root, progress) for name, spec in recipe.valid.items()}
    model = untrained(recipe, tokenizer).to(repeatable_device())
    watchers = watch(Scene(recipe, model, tokenizer, streams, valid, recipe.tokens // recipe.batch_tokens))
    _train(model, recipe, streams, valid, run, progress, watchers)
    found = against_ngrams(recipe, streams, valid, model, untrained(recipe, tokenizer))
    write_json(run / "validation.json", found)
    folder = export(model, tokenizer, run / "model")
    for name in ("training.jsonl", "observations.jsonl"):
        shutil.copyfile(run / name, folder / name)
    write_json(folder / "validation.json", found)
    write_atomic(folder / "README.md", card(recipe, streams, found))
    return folder


def architecture(recipe: PretrainRecipe, tokenizer: Tokenizer) -> LlamaConfig:
    """Llama with tied embeddings; head size 64 by default."""
    end = tokenizer.token_to_id(END)
    return LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.d_model,
        intermediate_size=recipe.d_ff,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=tokenizer.token_to_id(PAD),
        initializer_range=0.02,  # of all but the embeddings, see `untrained`
    )


def untrained(recipe: PretrainRecipe, tokenizer: Tokenizer) -> LlamaForCausalLM:
    """The model before the first step, drawn from the recipe's seed on the processor, so that it is the same on every device."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(architecture(recipe, tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=recipe.embedding_std)
    return model


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> Path:
    """bf16 safetensors, tokenizer and config, loadable by plain transformers."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END, pad_token=PAD, model_max_length=model.config.max_position_embeddings
    )
    with writing(folder), quiet():
        model.to("cpu", torch.bfloat16).save_pretrained(folder)
        fast.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
    return folder


def _train(
    model: LlamaForCausalLM, recipe: PretrainRecipe, streams: Streams, valid: Streams, run: Path, progress: Progress, watchers: Sequence[Observer]
) -> None:
    steps = recipe.tokens // recipe.batch_tokens
    batches = _batches(recipe, streams, steps, model.config.eos_token_id)
    optim = Optim(model, OptimSpec(recipe.lr, weight_decay=recipe.weight_decay, muon_lr=recipe.muon_lr))
    done = checkpoint.find(run / "checkpoint")
    start, seen = (int(done["step"]), int(done["tokens"])) if done else (0, 0)
    if done:
        checkpoint.restore(run / "checkpoint", model, optim)
        batches.restore(done["batches"])
    objective = NextToken("lm", backbone=torch.compile(model.model) if recipe.compile else None)
    life = Life(steps, {name: looks(recipe, name, stream, model.config.eos_token_id, 16) for name, stream in valid.items()}, recipe.precision)
    factor = schedule("wsd", steps, warmup=recipe.warmup, decay=recipe.decay)
    # torch's own attention, so that a base can be made again to the byte whatever the loop learns to do faster
    spec = LoopSpec(steps, start, seen, clip=recipe.clip, precision=recipe.precision, attention="torch")
    log = _Log(run / "training.jsonl", start)
    observers: list[Observer] = [life, *watchers]
    try:
        for info in train(model, objective, batches, optim, factor, spec, observers):
            log.step(info)
            progress(f"pretraining, loss {info.loss:.3f}", info.step, steps)
            if life.due(info.step):
                _keep_rows(run / "observations.jsonl", life)
            if info.step % recipe.checkpoint_every == 0 or info.step == steps:
                checkpoint.save(run / "checkpoint", model, optim, {"step": info.step, "tokens": info.tokens_seen, "batches": batches.state()})
    except KeyboardInterrupt as stop:
        raise Interrupted("stopped by the user", fix="run the same command again with --resume: it goes on at the last checkpoint") from stop
    except FloatingPointError as error:
        rates = f"lr {recipe.lr:g}" + (f", muon_lr {recipe.muon_lr:g}" if recipe.muon_lr else "")
        raise UsageError(f"training diverged: {error}", fix=f"lower the learning rate ({rates})", where="lr") from error


def _batches(recipe: PretrainRecipe, streams: Streams, steps: int, end: int) -> Batches:
    """Each step: windows of the running corpora together, of `sequence` tokens (of `long_sequence` in the last steps), and rows of each corpus of
    documents; every kind has its share of the step's tokens."""
    longest = recipe.long_sequence or recipe.sequence
    for name, stream in streams.items():
        if len(stream) <= longest:
            raise UsageError(f"the corpus {name} has {len(stream)} tokens", allowed=f"more than one window of {longest}", fix="give it more text")
    shares = {name: spec.share / sum(each.share for each in recipe.corpora.values()) for name, spec in recipe.corpora.items()}
    running = [name for name in streams if not recipe.corpora[name].documents]
    parts: list[Batches] = []
    if running:
        share = sum(shares[name] for name in running)
        parts.append(_windows(recipe, [streams[name] for name in running], [shares[name] for name in running], share, steps))
    for name in streams:
        if recipe.corpora[name].documents:
            tokens = max(1, round(shares[name] * recipe.batch_tokens))
            rows = documents(streams[name], end, recipe.context)
            parts.append(TokenBudget(rows, tokens, min(tokens, recipe.microbatch_tokens), end, recipe.seed, language_model=True))
    return parts[0] if len(parts) == 1 else Together(parts)


def _windows(recipe: PretrainRecipe, streams: list[np.ndarray], shares: list[float], share: float, steps: int) -> Batches:
    def windows(sequence: int, count: int, seed: int) -> Windows:
        per_step, per_microbatch = (max(1, round(tokens / sequence)) for tokens in (share * recipe.batch_tokens, recipe.microbatch_tokens))
        return Windows(streams, shares, sequence, per_step, per_microbatch, count, seed)

    if recipe.long_sequence is None:
        return windows(recipe.sequence, steps, recipe.seed)
    late = max(1, round(recipe.long_share * steps))
    return Chained(windows(recipe.sequence, steps - late, recipe.seed), windows(recipe.long_sequence, late, recipe.seed + 1), steps - late)


def _keep_rows(path: Path, life: Life) -> None:
    known = {row["step"] for row in read_jsonl(path)}
    for row in life.rows():
        if row["step"] not in known:
            append_jsonl(path, row)


@dataclass
class _Log:
    """One JSONL row every ten steps: step, tokens, loss, learning rate, gradient norm; seconds stand beside, outside digests."""

    path: Path
    start: int

    def __post_init__(self) -> None:
        self.clock = time.monotonic()
        self.known = {row["step"] for row in read_jsonl(self.path)}

    def step(self, info: StepInfo) -> None:
        if (info.step % 10 == 0 or info.step == 1) and info.step not in self.known:
            row = {"step": info.step, "tokens": info.tokens_seen, "loss": round(info.loss, 5), "lr": info.lr, "grad_norm": round(info.grad_norm, 5)}
            append_jsonl(self.path, row)
            append_jsonl(self.path.with_name("seconds.jsonl"), {"step": info.step, "seconds": round(time.monotonic() - self.clock, 2)})
