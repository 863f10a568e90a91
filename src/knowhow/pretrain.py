"""`knowhow pretrain`: a small Llama-type base from text and a domain's unlabelled traces, with the same loop as every specialist.

Stages, each kept in the run folder and never repeated: tokenizer → streams → train → export.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knowhow.adapt.lm import NextToken
from knowhow.data.batch import IGNORE, Chained, Together, TokenBudget, Windows, documents, even_windows, first_documents
from knowhow.data.sources import open_source
from knowhow.domains import find_domain
from knowhow.errors import Interrupted, UsageError
from knowhow.files import append_jsonl, read_jsonl, write_atomic, write_json, writing
from knowhow.loop import checkpoint
from knowhow.loop.machine import repeatable_device
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.maths import ngram
from knowhow.model.quiet import quiet
from knowhow.observe.life import Life, mean_loss
from knowhow.protocols import Batches, Observer, Progress
from knowhow.recipe import CorpusSpec, PretrainRecipe
from knowhow.types import Batch, StepInfo
from knowhow.workspace import nothing_from_nothing

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: en
tags: [knowhow, base-model]
---

# {name}

A small Llama-type language model: {layers} layers, d {d_model}, {heads} heads, feed-forward {d_ff}, tied embeddings, byte-level BPE of {vocabulary:,} tokens,
context {context}. Pretrained on {tokens:,} tokens of {corpora}, and nothing else. English novels are in the public domain (1840–1920); traces are generated,
without labels, from seeds used nowhere else. It is a base to start specialists from: it knows old-fashioned English
and the shape of program traces, and no facts.

Validation loss in nats per token, on text that was never trained on:

| corpus | training tokens | this model | 5-gram | unigram | untrained |
|---|---|---|---|---|---|
{rows}

The 5-gram (interpolated Kneser–Ney) and the unigram saw as many tokens of the same corpus. `training.jsonl` is the training log; `observations.jsonl` holds
looks at log-spaced steps: losses, spectra of the weights, roles of the heads. To make it again: `knowhow pretrain recipes/{name}.yaml`.
"""

END, PAD = "<|endoftext|>", "<|pad|>"
TOKENIZER_SHARE = 0.3
PIECE = 20_000


def pretrain(recipe: PretrainRecipe, *, run: Path, root: Path, progress: Progress) -> Path:
    """Make the base described by `recipe` in `run`; going on where an earlier call stopped. Returns the model folder."""
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
    with nothing_from_nothing(run, lambda: checkpoint.find(run / "checkpoint") is not None):
        return _make(recipe, run, root, progress)


def _make(recipe: PretrainRecipe, run: Path, root: Path, progress: Progress) -> Path:
    tokenizer = _tokenizer(recipe, run, root, progress)
    streams = {name: _stream(name, spec, tokenizer, run, root, progress) for name, spec in recipe.corpora.items()}
    valid = {name: _stream(f"valid-{name}", spec, tokenizer, run, root, progress) for name, spec in recipe.valid.items()}
    model = untrained(recipe, tokenizer).to(repeatable_device())
    _train(model, recipe, streams, valid, run, progress)
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


def texts(spec: CorpusSpec, root: Path) -> Iterator[str]:
    """Documents of a corpus in order. A domain's traces are shuffled in blocks, so twins do not stand side by side."""
    for name in spec.files:
        for number, row in enumerate(open_source(root / name).rows(), start=1):
            if not isinstance(row.get("text"), str):
                allowed = "rows with a field `text`"
                raise UsageError(f"a row without text (it has {', '.join(row)})", allowed=allowed, fix="rename the field", where=f"{root / name}, row {number}")
            yield row["text"]
    if spec.generate is not None:
        seed = spec.generate.seed or 0
        random = np.random.Generator(np.random.PCG64(seed))
        made = find_domain(spec.generate.domain).generate(spec.generate.options, seed=seed, n=spec.generate.train)
        for block in _blocks((str(example.prompt) for example in made), 4096):
            yield from (block[i] for i in random.permutation(len(block)))


def _blocks(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while block := list(itertools.islice(items, size)):
        yield block


def _tokenizer(recipe: PretrainRecipe, run: Path, root: Path, progress: Progress) -> Tokenizer:
    path = run / "tokenizer.json"
    if path.is_file():
        return Tokenizer.from_file(str(path))
    progress("tokenizer", 0, 0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[END, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    random = np.random.Generator(np.random.PCG64(recipe.seed))
    sample = (piece for spec in recipe.corpora.values() for text in texts(spec, root) for piece in _pieces(text) if random.random() < TOKENIZER_SHARE)
    tokenizer.train_from_iterator(sample, trainer)
    with writing(path):
        tokenizer.save(str(path))
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    """Cut long documents at line ends: the tokenizer works through short strings faster."""
    start = 0
    while start < len(text):
        end = start + PIECE
        cut = text.rfind("\n", start, end) + 1 if end < len(text) else len(text)
        end = cut if cut > start else min(end, len(text))
        yield text[start:end]
        start = end


def _stream(name: str, spec: CorpusSpec, tokenizer: Tokenizer, run: Path, root: Path, progress: Progress) -> np.ndarray:
    """Documents as one array of token ids, each followed by END; memory-mapped."""
    path = run / "streams" / f"{name}.npy"
    if path.is_file():
        return np.load(path, mmap_mode="r", allow_pickle=False)
    end, parts, total = tokenizer.token_to_id(END), [], 0
    for text in texts(spec, root):
        ids = [token for encoding in tokenizer.encode_batch(list(_pieces(text)), add_special_tokens=False) for token in encoding.ids]
        parts.append(np.asarray([*ids, end], np.uint16))
        total += len(ids) + 1
        progress(f"tokens of {name}", total, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        np.save(path.with_suffix(".part.npy"), np.concatenate(parts), allow_pickle=False)
        path.with_suffix(".part.npy").rename(path)
    return np.load(path, mmap_mode="r", allow_pickle=False)


Streams = dict[str, np.ndarray]


def _train(model: LlamaForCausalLM, recipe: PretrainRecipe, streams: Streams, valid: Streams, run: Path, progress: Progress) -> None:
    steps = recipe.tokens // recipe.batch_tokens
    batches = _batches(recipe, streams, steps, model.config.eos_token_id)
    optim = Optim(model, OptimSpec(recipe.lr, weight_decay=recipe.weight_decay, muon_lr=recipe.muon_lr))
    done = checkpoint.find(run / "checkpoint")
    start, seen = (int(done["step"]), int(done["tokens"])) if done else (0, 0)
    if done:
        checkpoint.restore(run / "checkpoint", model, optim)
        batches.restore(done["batches"])
    objective = NextToken("lm", backbone=torch.compile(model.model) if recipe.compile else None)
    life = Life(steps, {name: _looks(recipe, name, stream, model.config.eos_token_id, 16) for name, stream in valid.items()}, recipe.precision)
    factor = schedule("wsd", steps, warmup=recipe.warmup, decay=recipe.decay)
    # torch's own attention, so that a base can be made again to the byte whatever the loop learns to do faster
    spec = LoopSpec(steps, start, seen, clip=recipe.clip, precision=recipe.precision, attention="torch")
    log = _Log(run / "training.jsonl", start)
    observers: list[Observer] = [life]
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
        return Windows(streams, shares, sequence, per_step, min(per_step, per_microbatch), count, seed)

    if recipe.long_sequence is None:
        return windows(recipe.sequence, steps, recipe.seed)
    late = max(1, round(recipe.long_share * steps))
    return Chained(windows(recipe.sequence, steps - late, recipe.seed), windows(recipe.long_sequence, late, recipe.seed + 1), steps - late)


def _looks(recipe: PretrainRecipe, name: str, stream: np.ndarray, end: int, count: int) -> list[Batch]:
    """Validation rows of a corpus, of the kind that it is trained on: `count` windows, or as many tokens in documents."""
    sequence = recipe.long_sequence or recipe.sequence
    if name in recipe.corpora and recipe.corpora[name].documents:
        return first_documents(stream, end, recipe.context, count * sequence)
    return even_windows(stream, sequence, count)


def against_ngrams(recipe: PretrainRecipe, streams: Streams, valid: Streams, model: LlamaForCausalLM, before: LlamaForCausalLM) -> dict[str, Any]:
    """Validation loss per corpus beside a unigram, a 5-gram (Kneser–Ney) trained on as many tokens of the same corpus, and the model `before` training."""
    total = sum(spec.share for spec in recipe.corpora.values())
    found = {}
    for name, stream in valid.items():
        batches = _looks(recipe, name, stream, model.config.eos_token_id, 64)
        targets = [row[row != IGNORE].numpy() for batch in batches for row in batch.targets_BT]
        seen = np.asarray(streams[name][: int(recipe.tokens * recipe.corpora[name].share / total)])
        grams = ngram.fit(seen, recipe.vocabulary)
        found[name] = {
            "model": mean_loss(model, batches, recipe.precision),
            "untrained": mean_loss(before, batches[:2], recipe.precision),
            "unigram": float(ngram.unigram_losses(seen, np.concatenate(targets), recipe.vocabulary).mean()),
            "five_gram": float(np.concatenate([ngram.losses(grams, row) for row in targets]).mean()),
            "validation_tokens": sum(map(len, targets)),
            "training_tokens": len(seen),
        }
    return found


def card(recipe: PretrainRecipe, streams: Streams, found: dict[str, Any]) -> str:
    """The base's model card."""
    columns = ("model", "five_gram", "unigram", "untrained")
    rows = [f"| {name} | {f['training_tokens']:,} | {' | '.join(f'{f[column]:.3f}' for column in columns)} |" for name, f in found.items()]
    return CARD.format(
        name=recipe.name, tokens=recipe.tokens, d_model=recipe.d_model, layers=recipe.layers, heads=recipe.heads, d_ff=recipe.d_ff,
        vocabulary=recipe.vocabulary, context=recipe.context, corpora=", ".join(streams), rows="\n".join(rows),
    )  # fmt: skip


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
