"""Bad data: files that are no files, bytes that are no text, rows that are no rows, labels that cannot be learnt."""

from __future__ import annotations

import gzip
import json
import lzma
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from bad_place import Case, Place, Row, jsonl, rows

GOOD = jsonl(rows()).encode()


def of(name: str, content: str | bytes, **changes: object) -> object:
    """A build on a file with this content."""

    def given(place: Place) -> list[str]:
        return place.recipe({key.replace("__", "."): value for key, value in changes.items()}, data=place.file(name, content))

    return given


def with_rows(made: list[Row], **changes: object) -> object:
    return of("bad.jsonl", jsonl(made), **changes)


def look(name: str, content: str | bytes) -> object:
    return lambda place: ["inspect", place.file(name, content)]


def changed(at: int, **values: object) -> list[Row]:
    made = rows()
    made[at] = made[at] | values
    return made


def without(at: int, name: str) -> list[Row]:
    made = rows()
    del made[at][name]
    return made


def numbers(odd: object) -> list[Row]:
    """Numbers to predict, the tenth of them odd."""
    return [row | {"label": odd if at == 9 else at + 0.5} for at, row in enumerate(rows())]


def weighted() -> list[Row]:
    return [row | {"weight": 0 if at == 5 else 1} for at, row in enumerate(rows())]


def parquet(made: list[Row], **columns: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: [row[name] for row in made] for name in made[0]} | columns), sink)
    return sink.getvalue().to_pybytes()


def empty_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), sink)
    return sink.getvalue().to_pybytes()


def loop(place: Place) -> list[str]:
    (place.folder / "a.jsonl").symlink_to("b.jsonl")
    (place.folder / "b.jsonl").symlink_to("a.jsonl")
    return ["inspect", "a.jsonl"]


def pipe(place: Place) -> list[str]:
    os.mkfifo(place.folder / "rows.fifo")
    return ["inspect", "rows.fifo"]


def folder(place: Place) -> list[str]:
    place.file("rows/one.jsonl", GOOD)
    return place.recipe(data="rows")


def beside(place: Place) -> list[str]:
    place.file("reviews.jsonl", GOOD)
    return ["inspect", "revews.jsonl"]


def unreadable(place: Place) -> list[str]:
    """A file that even root cannot read as one."""
    return place.recipe(data="/proc/self/mem")


def three(train: list[Row], valid: list[Row], test: list[Row], **changes: object) -> object:
    def given(place: Place) -> list[str]:
        named = {f"data.{name}": place.file(f"{name}.jsonl", jsonl(made)) for name, made in (("valid", valid), ("test", test))}
        return place.recipe(named | {key.replace("__", "."): value for key, value in changes.items()}, data=place.file("train.jsonl", jsonl(train)))

    return given


CSV = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows())
DEEP = "[" * 100_000 + "]" * 100_000
TEXTS = {"task": {"kind": "generate"}, "adapt": [{"objective": "sft", "steps": 2}]}
LONG = json.dumps({"text": "snow " * 2_000_000, "label": "cold"})

CASES = (
    Case("empty file", of("bad.jsonl", ""), ("the file is empty", "at least one row")),
    Case("only blank lines", of("bad.jsonl", "\n \n\n"), ("empty", "at least one row")),
    Case("a header alone", of("bad.csv", "text,label\n"), ("no rows", "header")),
    Case("wrong field", of("bad.jsonl", GOOD, data__fields={"text": "txt"}), ("'txt'", "did you mean 'text'", "text, label")),
    Case("wrong field with --set", lambda p: ["inspect", p.file("a.jsonl", GOOD), "--set", "fields.label=lable"], ("'lable'", "did you mean 'label'")),
    Case("no text column", with_rows([{"a": 1, "b": 2}] * 9), ("no column that reads like a text", "data.fields.text")),
    Case("no label column", with_rows([{"text": f"snow {at}"} for at in range(40)]), ("label", "data.fields.label")),
    Case("mixed types of labels", with_rows(changed(30, label=3)), ("row 31", "a number", "row 1", "text", "one type")),
    Case("mixed types of texts", with_rows(changed(30, text=3.5)), ("row 31", "text")),
    Case("a label that is an object", with_rows([row | {"label": {"a": 1}} for row in rows()], data__fields={"label": "label"}), ("an object", "one label")),
    Case("one class", with_rows([row | {"label": "warm"} for row in rows()]), ("one", "warm", "two")),
    Case("label only in test", three(rows(), rows(), [*rows(8), {"text": "fog", "label": "damp"}]), ("'damp'", "only in test", "cold, warm")),
    Case("label only in valid", three(rows(), [*rows(8), {"text": "fog", "label": "damp"}], rows()), ("'damp'", "only in valid", "cold, warm")),
    Case("a label that the task does not have", with_rows(rows(), task={"labels": ["warm", "colder"]}), ("'cold'", "did you mean 'colder'", "warm, colder")),
    Case("a label of the task in no row", with_rows(rows(), task={"labels": ["warm", "cold", "damp"]}), ("damp", "task.labels")),
    Case("label missing in a row", with_rows(without(12, "label")), ("row 13", "'label'")),
    Case("label null in a row", with_rows(changed(12, label=None)), ("row 13", "no label", "label")),
    Case("a blank label", with_rows(changed(12, label="  ")), ("row 13", "label")),
    Case("NaN as a label", of("bad.jsonl", jsonl(changed(12, label=float("nan")))), ("row 13", "label", "nan")),
    Case("NaN as a number to predict", with_rows(numbers("NaN"), task={"kind": "regress"}), ("row 10", "NaN")),
    Case("an infinite number to predict", with_rows(numbers(float("inf")), task={"kind": "regress"}), ("row 10", "inf", "finite")),
    Case("words to regress on", with_rows(rows(), task={"kind": "regress"}), ("row 1", "finite number", "'warm'")),
    Case("fractions as classes", with_rows([row | {"label": at / 3 + 0.1} for at, row in enumerate(rows())]), ("regress",)),
    Case("a label with a newline", with_rows([row | {"label": row["label"] + "\nx"} for row in rows()]), (), code=0, leaves="more"),
    Case("a line of 10 MB", of("bad.jsonl", GOOD + LONG.encode() + b"\n"), (":41", "8 MB per row")),
    Case("a line of 10 MB in CSV", of("bad.csv", CSV + '"' + "snow " * 2_000_000 + '",cold\n'), ("8 MB per row",)),
    Case("byte order mark", of("good.jsonl", b"\xef\xbb\xbf" + GOOD), (), code=0, leaves="more"),
    Case("lone surrogate", of("bad.jsonl", GOOD + b'{"text": "snow \\ud800", "label": "cold"}\n'), (":41", "lone surrogate", "'text'")),
    Case("UTF-16", of("bad.jsonl", GOOD.decode().encode("utf-16")), ("UTF-16", "iconv")),
    Case("UTF-16 without a mark", of("bad.jsonl", GOOD.decode().encode("utf-16-le")), ("NUL", "iconv")),
    Case("latin-1", of("bad.csv", CSV.replace("snow", "né").encode("latin-1")), ("0xe9", "UTF-8", "iconv")),
    Case("truncated gz", of("bad.jsonl.gz", gzip.compress(GOOD * 50)[:-20]), ("truncated", "fetch")),
    Case("truncated xz", of("bad.jsonl.xz", lzma.compress(GOOD)[:-30]), ("truncated", "fetch")),
    Case("truncated zst", of("bad.jsonl.zst", zstandard.compress(GOOD)[:-30]), ("truncated", "fetch")),
    Case("gz in name only", of("bad.jsonl.gz", GOOD), ("not gzip",)),
    Case("damaged gz", of("bad.jsonl.gz", gzip.compress(GOOD)[:-8] + bytes(8)), ("damaged",)),
    Case("directory for a file", folder, ("folder", "one.jsonl")),
    Case("file for a directory", lambda p: ["inspect", f"{p.file('rows.jsonl', GOOD)}/inside.jsonl"], ("rows.jsonl",)),
    Case("no such file", beside, ("revews.jsonl", "did you mean reviews.jsonl")),
    Case("no such file, in a recipe", lambda p: p.recipe(data="rowz.jsonl") if p.file("rows.jsonl", GOOD) else [], ("data.train", "rows.jsonl", "r.yaml:")),
    Case("symlink loop", loop, ("leads back to itself",)),
    Case("symlink loop, in a recipe", lambda p: (loop(p), p.recipe(data="a.jsonl"))[1], ("data.train", "link")),
    Case("a pipe", pipe, ("neither a file nor a folder", "write its content to a file")),
    Case("a device", lambda p: p.recipe(data="/dev/zero"), ("neither a file nor a folder",)),
    Case("a file that cannot be read", unreadable, ("cannot read", "/proc/self/mem")),
    Case("a name that is too long", lambda p: ["inspect", "x" * 300 + ".jsonl"], ("too long",)),
    Case("ragged CSV", of("bad.csv", CSV + "snow,cold,3\n"), (":42", "3 cells", "2")),
    Case("NUL in CSV", of("bad.csv", CSV + "sn\0ow,cold\n"), (":42", "NUL")),
    Case("open quote in CSV", of("bad.csv", CSV + '"snow,cold\n'), (":42", "quote")),
    Case("JSON array not closed", of("bad.json", json.dumps(rows())[:-1]), ("not closed",)),
    Case("JSON broken in the middle", of("bad.jsonl", GOOD + b'{"text": "snow", "label": }\n' + GOOD), (":41", "not JSON")),
    Case("JSON that is a number", of("bad.jsonl", "1\n2\n3\n"), (":1", "object")),
    Case("depth bomb in a line", of("bad.jsonl", GOOD + f'{{"text": {DEEP}, "label": "cold"}}\n'.encode()), (":41", "nested too deeply")),
    Case("depth bomb in an array", of("bad.json", f'[{{"text": {DEEP}, "label": "cold"}}]'), ("nested too deeply",)),
    Case("a number of 5,000 digits", of("bad.jsonl", GOOD + b'{"text": "snow", "label": ' + b"9" * 5000 + b"}\n"), (":41", "digits")),
    Case("truncated Parquet", of("bad.parquet", parquet(rows())[:-40]), ("Parquet", "bad.parquet")),
    Case("Parquet in name only", of("bad.parquet", GOOD), ("Parquet",)),
    Case("Parquet of blanks", of("bad.parquet", parquet([{"text": "", "label": ""}])), ("blank in every row",)),
    Case("Parquet without rows", of("bad.parquet", empty_parquet()), ("no rows",)),
    Case("a pickle as data", lambda p: ["inspect", p.file("rows.pkl", b"\x80\x04.")], ("pickle", "JSONL or Parquet"), code=4),
    Case("a pickle under another name", of("rows.jsonl", b"\x80\x04\x95" + bytes(80)), ("a pickle",)),
    Case("a zip archive", of("rows.csv", b"PK\x03\x04" + bytes(99)), ("ZIP",)),
    Case("noise", of("rows.jsonl", np.random.default_rng(0).bytes(5000)), ("rows.jsonl:1",)),
    Case("an unknown suffix", of("rows.docx", "some words\nmore words\n"), ("unknown kind", ".jsonl")),
    Case("two rows for three parts", with_rows(rows(2)), ("2 rows", "at least 3")),
    Case("fewer rows than the split needs", with_rows(rows(4)), ("data.split", "4 rows")),
    Case("all rows identical", with_rows([rows()[0], rows()[1] | {"text": rows()[0]["text"]}] * 20), ("duplicates",)),
    Case("the same rows in every part", three(rows(), rows(), rows()), (), code=0, leaves="more"),
    Case("a blank text", with_rows(changed(12, text=" \t ")), ("row 13", "text")),
    Case("a class with one row", with_rows([*rows(), {"text": "fog", "label": "damp"}]), (), code=0, leaves="more"),
    Case("every row another label", with_rows([row | {"label": f"label {at}"} for at, row in enumerate(rows())]), ("training",)),
    Case("a split by time without times", with_rows(rows(), data__split={"by": "time"}), ("data.split.by", "time")),
    Case("a split by group without groups", with_rows(rows(), data__split={"by": "group"}), ("data.split.by", "group")),
    Case("no rows left by the limit's file", three(rows(), [], rows()), ("valid.jsonl", "empty")),
    Case("a weight of nothing", with_rows(weighted(), data__fields={"weight": "weight"}), ("row 6", "above 0")),
    Case("a time that is none", with_rows([row | {"when": "soon"} for row in rows()], data__fields={"time": "when"}), ("row 1", "'soon'", "ISO 8601")),
    Case("pairs without a second text", with_rows(rows(), task={"kind": "score"}), ("second text", "data.fields.pair")),
    Case("answers that are not there", with_rows([{"text": f"snow {at}"} for at in range(40)], **TEXTS), ("no answer", "completion")),
    Case(
        "conversations without an answer", with_rows([{"messages": [{"role": "user", "content": f"snow {at}"}]} for at in range(40)], **TEXTS), ("no answer",)
    ),
    Case("a conversation that is a number", with_rows([{"messages": 3, "label": "a"}] * 40, data__fields={"messages": "messages"}), ("row 1", "messages")),
)
