"""Bad use of what is finished: specialists that are none or were changed, files without texts, runs that are not there, words that are no command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bad_place import Case, Place, jsonl, rows
from safetensors.numpy import load_file, save_file

NEW = jsonl([{"text": row["text"]} for row in rows(12)])
PRETRAIN = {"name": "base", "vocabulary": 300, "d_model": 16, "layers": 1, "heads": 2, "kv_heads": 2, "d_ff": 16, "context": 32}
PRETRAIN |= {"tokens": 512, "batch_tokens": 64, "microbatch_tokens": 64, "sequence": 16, "compile": False}
LARGE = {"context": 8192, "sequence": 8192, "batch_tokens": 8192, "microbatch_tokens": 8192, "tokens": 9000}


def words(*said: str, stdin: str | None = None) -> object:
    return lambda place: list(said)


def expert(*said: str, spoil: Callable[[Path], object] | None = None, **files: str | bytes) -> object:
    """A command on a copy of a finished specialist: EXPERT stands for it, other words in capitals for files."""

    def given(place: Place) -> list[str]:
        named = {name.upper(): place.file(f"{name}.jsonl", content) for name, content in files.items()} | {"EXPERT": place.specialist(spoil)}
        return [named.get(word, word) for word in said]

    return given


def ran(*said: str, spoil: Callable[[Path], object] | None = None) -> object:
    """A command on a copy of a finished run: RUN stands for its name."""

    def given(place: Place) -> list[str]:
        name = place.run()
        if spoil is not None:
            spoil(place.folder / "runs" / name)
        return [name if word == "RUN" else word for word in said]

    return given


def byte(name: str, at: int = -1) -> Callable[[Path], object]:
    """One byte changed."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(bytes(data))

    return change


def manifest(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "knowhow.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def gone(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def poisoned(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[min(tensors)].fill(np.nan)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def unfinished(folder: Path) -> None:
    for stage in ("package", "report"):
        for path in sorted((folder / stage).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / stage).rmdir()


def torn(name: str, content: str = "{") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def predicted(content: str) -> object:
    """`predict` into a file that is there."""

    def given(place: Place) -> list[str]:
        place.file("answers.jsonl", content)
        return ["predict", place.specialist(), place.file("new.jsonl", NEW), "--out", "answers.jsonl"]

    return given


def of_another(place: Place) -> list[str]:
    place.file("answers.jsonl", "{}\n")
    place.file("answers.jsonl.state.json", json.dumps({"model": "x", "file": "y"}))
    return ["predict", place.specialist(), place.file("new.jsonl", NEW), "--out", "answers.jsonl"]


def two(place: Place) -> list[str]:
    return ["diff", place.run(), "absent"]


def pretrain(corpora: object = None, **changes: object) -> object:
    def given(place: Place) -> list[str]:
        place.file("text.jsonl", jsonl([{"text": f"the quick brown fox {at} jumps over the lazy dog {at * at}"} for at in range(200)]))
        place.file("other.jsonl", jsonl([{"body": "x"}] * 9))
        both = {"a": {"files": ["text.jsonl"]}}
        place.file("base.yaml", json.dumps(PRETRAIN | {"corpora": both if corpora is None else corpora, "valid": both} | changes))
        return ["pretrain", "base.yaml"]

    return given


def existing(name: str) -> object:
    def given(place: Place) -> list[str]:
        place.file("recipe.yaml", "mine")
        return ["init", "--data", place.file("rows.jsonl", jsonl(rows())), "--yes", "--out", name]

    return given


CASES = (
    Case("no such command", words("buld", "x"), ("buld", "knowhow --help")),
    Case("no such option", words("build", "r.yaml", "--resum"), ("--resum", "--resume")),
    Case("an argument too many", words("ask", "a", "b", "c"), ("unexpected",)),
    Case("an argument too few", words("diff", "a"), ("RUN",)),
    Case("tampered weights: one byte", expert("ask", "EXPERT", "snow", spoil=byte("model.safetensors")), ("model.safetensors was changed",), code=4),
    Case("tampered config: one byte", expert("ask", "EXPERT", "snow", spoil=byte("config.json", 3)), ("config.json was changed",), code=4),
    Case("tampered card: one byte", expert("predict", "EXPERT", "NEW", new=NEW, spoil=byte("README.md")), ("README.md was changed",), code=4),
    Case("tampered manifest", expert("ask", "EXPERT", "snow", spoil=manifest(licence="mit")), ("knowhow.json was changed",), code=4),
    Case("NaN weights in a specialist", expert("ask", "EXPERT", "snow", spoil=poisoned), ("model.safetensors was changed",), code=4),
    Case("a file added to a specialist", expert("ask", "EXPERT", "snow", spoil=torn("model.py", "import os")), ("model.py",), code=4),
    Case("a file missing in a specialist", expert("ask", "EXPERT", "snow", spoil=gone("tokenizer.json")), ("tokenizer.json is not there",), code=4),
    Case("a specialist of another version", expert("ask", "EXPERT", "snow", spoil=manifest(schema_version=99)), ("a manifest of version 99", "update knowhow")),
    Case("a manifest with an unknown key", expert("ask", "EXPERT", "snow", spoil=manifest(run="rm -rf")), ("knowhow.json",)),
    Case("a manifest that is no JSON", expert("ask", "EXPERT", "snow", spoil=torn("knowhow.json")), ("knowhow.json",)),
    Case("a manifest that is a list", expert("ask", "EXPERT", "snow", spoil=torn("knowhow.json", "[]")), ("knowhow.json",)),
    Case("a folder that is no specialist", lambda p: (p.file("notes/a.txt", "x"), ["ask", "notes", "snow"])[1], ("config.json", "notes")),
    Case("a file as specialist", lambda p: ["ask", p.file("rows.jsonl", NEW), "snow"], ("rows.jsonl",)),
    Case("no such specialist", words("ask", "absent", "snow"), ("no run", "absent")),
    Case("no such folder of a specialist", words("ask", "./absent", "snow"), ("absent",)),
    Case("a run without a specialist", ran("ask", "RUN", "snow", spoil=unfinished), ("no specialist yet", "--resume")),
    Case("ask nothing", expert("ask", "EXPERT", ""), ("an empty text", "at least one word")),
    Case("ask blanks", expert("ask", "EXPERT", " \n\t "), ("an empty text",)),
    Case("ask a lone surrogate", expert("ask", "EXPERT", "snow \udcff"), (), code=0),
    Case("ask a pair of one text", expert("ask", "EXPERT", "snow", "--pair", "ice"), ("one text", "leave --pair away")),
    Case("ask control characters", expert("ask", "EXPERT", "snow \x00\x1b[31m"), (), code=0),
    Case("ask a very long text", expert("ask", "EXPERT", "snow " * 20_000), (), code=0),
    Case("predict a file without texts", expert("predict", "EXPERT", "NEW", new=jsonl([{"a": 1}] * 9)), ("reads like a text", "a")),
    Case("predict an empty file", expert("predict", "EXPERT", "NEW", new=""), ("empty",)),
    Case("predict no file", expert("predict", "EXPERT", "absent.jsonl"), ("absent.jsonl",)),
    Case("predict a folder", lambda p: (p.file("some/new.jsonl", NEW), ["predict", p.specialist(), "some"])[1], ("some", "new.jsonl")),
    Case("predict a blank text", expert("predict", "EXPERT", "NEW", new=NEW + '{"text": " "}\n'), ("row 13",)),
    Case("predict into a file that is there", predicted("precious\n"), ("answers.jsonl", "another --out")),
    Case("predict into another's file", of_another, ("another model or file", "another --out")),
    Case("predict into a folder", lambda p: (os.mkdir(p.folder / "out"), ["predict", p.specialist(), p.file("new.jsonl", NEW), "--out", "out"])[1], ("out",)),
    Case("predict into nowhere", lambda p: ["predict", p.specialist(), p.file("new.jsonl", NEW), "--out", "/proc/nowhere/a.jsonl"], ("/proc/nowhere",)),
    Case("predict with a wrong field", expert("predict", "EXPERT", "NEW", "--set", "fields.text=txt", new=NEW), ("'txt'", "'text'")),
    Case("eval with unknown labels", expert("eval", "EXPERT", "NEW", new=jsonl([row | {"label": "damp"} for row in rows()])), ("'damp'", "cold, warm")),
    Case("eval without labels", expert("eval", "EXPERT", "NEW", new=NEW), ("label", "data.fields.label")),
    Case("eval with one class", expert("eval", "EXPERT", "NEW", new=jsonl(rows()[::2])), (), code=0),
    Case("eval on nothing", expert("eval", "EXPERT", "NEW", new="\n"), ("empty",)),
    Case("eval with an unknown key", expert("eval", "EXPERT", "NEW", "--set", "feelds.text=x", new=jsonl(rows())), ("feelds", "fields")),
    Case("diff with a missing run", two, ("absent", "runs ls")),
    Case("diff with itself", ran("diff", "RUN", "RUN"), (), code=0),
    Case("report of a missing run", words("report", "absent"), ("absent", "runs ls")),
    Case("a report of torn results", ran("report", "RUN", spoil=torn("evaluate/results.json")), (), code=0, leaves="more"),
    Case("a run's record that is torn", ran("report", "RUN", spoil=torn("run.json")), (), code=0, leaves="more"),
    Case("a list of runs with a torn one", ran("runs", "ls", spoil=torn("run.json")), (), code=0),
    Case("a list of runs with a torn seal", ran("runs", "ls", spoil=torn("data/seal.json")), ("seal.json",)),
    Case("a list of runs in a file", lambda p: ["runs", "ls", "--runs", p.file("x", "x")], (), code=0),
    Case("rm ../x", words("runs", "rm", "../x", "--yes"), ("'../x' is not a name",)),
    Case("rm a name with a slash", words("runs", "rm", "a/b", "--yes"), ("'a/b' is not a name",)),
    Case("rm /", words("runs", "rm", "/", "--yes"), ("is not a name",)),
    Case("rm nothing", words("runs", "rm", "", "--yes"), ("is not a name",)),
    Case("rm a missing run", words("runs", "rm", "absent", "--yes"), ("absent",)),
    Case("rm one that is there and one that is not", ran("runs", "rm", "RUN", "absent", "--yes"), ("absent",)),
    Case("rm without being sure", ran("runs", "rm", "RUN"), ("add --yes",)),
    Case("inspect without labels", lambda p: ["inspect", p.file("new.jsonl", NEW)], ("label", "fields.label")),
    Case("inspect with an unknown key", lambda p: ["inspect", p.file("new.jsonl", NEW), "--set", "splt.by=time"], ("splt", "split")),
    Case("inspect a hub id offline", words("inspect", "nobody/nothing"), ("nobody/nothing",)),
    Case("init over a recipe", existing("recipe.yaml"), ("is there already", "--out")),
    Case("init into nowhere", existing("/proc/nowhere/r.yaml"), ("/proc/nowhere",)),
    Case("init without data", words("init", "--yes"), ("no --data",)),
    Case("init on no file", words("init", "--data", "absent.csv", "--yes"), ("absent.csv",)),
    Case("init with an unknown task", lambda p: ["init", "--yes", "--task", "sort", "--data", p.file("rows.jsonl", jsonl(rows()))], ("'sort'", "classify")),
    Case("init with an unknown base", lambda p: ["init", "--yes", "--base", "./absent", "--data", p.file("rows.jsonl", jsonl(rows()))], ("absent",)),
    Case("pretrain on a file without texts", pretrain({"a": {"files": ["other.jsonl"]}}), ("other.jsonl", "text")),
    Case("pretrain on nothing", pretrain({"a": {}}), ("corpora.a",)),
    Case("pretrain without corpora", pretrain({}), ("corpora",)),
    Case("pretrain on a missing file", pretrain({"a": {"files": ["text.json"]}}), ("text.json",)),
    Case("pretrain with heads that do not fit", pretrain(heads=3), ("heads", "d_model")),
    Case("pretrain with a window above the context", pretrain(sequence=64), ("sequence", "context")),
    Case("pretrain with too many words", pretrain(vocabulary=10**6), ("vocabulary", "65,536")),
    Case("pretrain with too few words", pretrain(vocabulary=10), ("vocabulary",)),
    Case("pretrain that diverges", pretrain(lr=1e30, muon_lr=None), ("diverged", "lr")),
    Case("pretrain with a window above the corpus", pretrain(**LARGE), ("the corpus a", "more text")),
    Case("pretrain of less than a step", pretrain(tokens=10), ("tokens",)),
    Case("pretrain a specialist", lambda p: ["pretrain", p.recipe()[1]], ("knowhow build",)),
)
