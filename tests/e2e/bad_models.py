"""Bad bases and bad training: folders that are no model, folders that lie, objectives that do not fit, rates that diverge."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_place import Case, Place, jsonl, rows
from safetensors.numpy import load_file, save_file

PICKLE = pickle.dumps({"a": 1})
LOOP = "{% for i in range(1000) %}{% for j in range(1000) %}{% for k in range(1000) %}x{% endfor %}{% endfor %}{% endfor %}"
WEIGHTS = "model.safetensors"


def base(spoil: Callable[[Path], object], family: str = "llama") -> object:
    return lambda place: place.base(spoil, family)


def edit(name: str, **values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return change


def gone(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def values(change: Callable[[np.ndarray], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors[min(tensors)])
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def overlapping(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    start, end = header[names[1]]["data_offsets"]
    header[names[1]]["data_offsets"] = [0, end - start]
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def cut(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)


def from_folder(name: str, content: str | None = None) -> object:
    """`--from` something that is no specialist."""

    def given(place: Place) -> list[str]:
        if content is not None:
            place.file(f"{name}/notes.txt", content)
        return [*place.recipe(), "--from", name]

    return given


def other_labels(place: Place) -> list[str]:
    return [*place.recipe({"task.labels": ["warm", "cold"]}), "--from", place.specialist()]


def trained(**phase: object) -> object:
    """A build with another phase."""
    return lambda place: place.recipe({f"adapt.0.{name}": value for name, value in phase.items()})


def answers(completion: str, count: int = 40) -> str:
    return jsonl([{"text": row["text"], "completion": completion} for row in rows(count)])


def sft(completion: str, family: str = "llama", **changes: object) -> object:
    def given(place: Place) -> list[str]:
        named = {"task.kind": "generate", "adapt.0.objective": "sft", "base.model": str(place.models / family), "evaluate.baselines": ["majority"]}
        return place.recipe(named | {key.replace("__", "."): value for key, value in changes.items()}, data=place.file("a.jsonl", answers(completion)))

    return given


CASES = (
    Case("unknown base name", lambda p: p.recipe({"base.model": "seedlin"}), ("seedlin", "seedling, minilm")),
    Case("a base that is no folder", lambda p: p.recipe({"base.model": "./absent"}), ("`base.model`", "absent")),
    Case("a base that is a file", lambda p: p.recipe({"base.model": "./rows.jsonl"}), ("is a file", "config.json")),
    Case("a hub id offline", lambda p: p.recipe({"base.model": "nobody/nothing"}), ("nobody/nothing", "seedling")),
    Case("a revision of a folder", lambda p: p.recipe({"base.revision": "main"}), ("revision 'main'", "remove the revision")),
    Case("a blank base", lambda p: p.recipe({"base.model": " "}), ("base",)),
    Case("no tokenizer", base(gone("tokenizer.json", "tokenizer_config.json")), ("without tokenizer files", "save_pretrained")),
    Case("no config", base(gone("config.json")), ("without config.json",)),
    Case("no weights", base(gone(WEIGHTS)), ("safetensors weights",)),
    Case("an empty model folder", lambda p: (os.mkdir(p.folder / "model"), p.recipe({"base.model": "./model"}))[1], ("without config.json",)),
    Case("a tokenizer that is no JSON", base(put("tokenizer.json", "{")), ("tokenizer.json",), code=4),
    Case("a tokenizer that is another JSON", base(put("tokenizer.json", "{}")), ("tokenizer",)),
    Case("a config of another size", base(edit("config.json", hidden_size=64)), ("model", "weights"), code=4),
    Case("a config of no size", base(edit("config.json", hidden_size=0)), ("hidden_size",), code=4),
    Case("a config of a huge size", base(edit("config.json", vocab_size=1 << 40)), ("vocab_size",), code=4),
    Case("a config of words", base(edit("config.json", num_hidden_layers="two")), ("num_hidden_layers",), code=4),
    Case("unknown model type", base(edit("config.json", model_type="evil")), ("model_type",), code=4),
    Case("pickle weights", base(put("pytorch_model.bin", PICKLE)), ("pickle-like file pytorch_model.bin",), code=4),
    Case("pickle under another name", base(put("notes", PICKLE)), ("is a pickle",), code=4),
    Case("auto_map", base(edit("config.json", auto_map={"AutoModel": "x.Y"})), ("auto_map",), code=4),
    Case("a program inside", base(put("modeling_x.py", "import os")), ("program file modeling_x.py",), code=4),
    Case("a link out", base(lambda f: (f / "notes.txt").symlink_to("/etc/hostname")), ("symbolic link", "cp -rL"), code=4),
    Case("a pipe inside", base(lambda f: os.mkfifo(f / "pipe")), ("device, pipe or socket",), code=4),
    Case("overlapping tensors", base(overlapping), ("overlapping tensors",), code=4),
    Case("NaN weights", base(values(lambda tensor: tensor.fill(np.nan))), ("NaN or infinite weights",), code=4),
    Case("infinite weights", base(values(lambda tensor: tensor.fill(np.inf))), ("NaN or infinite weights",), code=4),
    Case("truncated weights", base(cut), ("truncated safetensors",), code=4),
    Case("no weights at all", base(put(WEIGHTS, b"")), ("truncated safetensors",), code=4),
    Case("a looping template", base(put("chat_template.jinja", LOOP)), ("template",), code=4),
    Case("a template that is no template", base(put("chat_template.jinja", "{% for %}")), ("template",), code=4),
    Case("huge weights that overflow", base(values(lambda tensor: tensor.fill(3e38))), ("no numbers", "take another"), leaves="run"),
    Case("encoder with sft", sft("yes", "bert"), ("sft with an encoder", "causal base"), leaves="run"),
    Case("sft for labels", trained(objective="sft"), ("objective` is sft", "classify")),
    Case("classify for texts", sft("yes", adapt__0__objective="classify"), ("objective` is classify", "sft")),
    Case("answers longer than the context", sft("yes and no " * 400), ("3201 tokens", "the context of 128"), leaves="run"),
    Case("a rate that diverges", trained(lr=1e9, steps=12), ("diverged", "lower the learning rate"), leaves="run"),
    Case("a rate that overflows", trained(lr=1e30, steps=12), ("diverged", "lower the learning rate"), leaves="run"),
    Case("a sweep that diverges", trained(lr=[1e30, 1e32], steps=12), ("diverged at every learning rate", "lower ones"), leaves="run"),
    Case("a sweep that half diverges", trained(lr=[1e-3, 1e30], steps=12), (), code=0, leaves="more"),
    Case("--from nowhere", from_folder("absent"), ("absent", "runs in runs")),
    Case("--from a folder that is no specialist", from_folder("notes", "nothing"), ("notes", "specialist")),
    Case("--from a file", lambda p: [*p.recipe(), "--from", "rows.jsonl"], ("rows.jsonl", "specialist")),
    Case("--from a specialist with other labels", other_labels, (), code=0, leaves="more"),
    Case("--from a tampered specialist", lambda p: [*p.recipe(), "--from", p.specialist(lambda f: put("README.md", "x")(f))], ("README.md",), code=4),
    Case("--resume without a run", lambda p: [*p.recipe(), "--resume"], ("nothing to resume", "leave --resume away")),
    Case("runs into a file", lambda p: [*p.recipe(), "--runs", "rows.jsonl"], ("rows.jsonl",)),
    Case("runs into /proc", lambda p: [*p.recipe(), "--runs", "/proc/knowhow"], ("/proc/knowhow",)),
)
