"""One battery for every Source: the same rows whatever the format and the compression, and hostile files refused with a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from knowhow.data import columnar, streams
from knowhow.data.sources import open_source
from knowhow.errors import KnowhowError, SafetyError, UsageError
from knowhow.protocols import Source

ROWS = [{"text": f'row {n}: naïve café, "quoted", tab-free 日本', "label": "abc"[n % 3]} for n in range(700)]
Write = Callable[[], bytes]


def jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def array() -> bytes:
    return json.dumps(ROWS, indent=1).encode()


def table(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    csv.DictWriter(out, ["text", "label"], delimiter=delimiter).writeheader()
    csv.DictWriter(out, ["text", "label"], delimiter=delimiter).writerows(ROWS)
    return out.getvalue().encode()


def parquet() -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=100)
    return out.getvalue()


def arrow(stream: bool) -> bytes:
    out, rows = io.BytesIO(), pa.Table.from_pylist(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=300)
    return out.getvalue()


FORMATS: dict[str, Write] = {
    "rows.jsonl": jsonl,
    "rows.json": array,
    "lines.json": jsonl,
    "rows.csv": lambda: table(","),
    "semicolons.csv": lambda: table(";"),
    "rows.tsv": lambda: table("\t"),
    "rows.parquet": parquet,
    "rows.arrow": lambda: arrow(False),
    "stream.arrow": lambda: arrow(True),
    "noname": jsonl,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda raw: raw,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw[:9999]) + zstandard.ZstdCompressor().compress(raw[9999:]),
}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / (name + suffix)
    path.write_bytes(PACKERS[suffix](FORMATS[name]()))
    source = open_source(path)
    assert isinstance(source, Source)
    assert list(source.rows()) == ROWS
    assert list(source.rows()) == ROWS, "a source can be read again"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + FORMATS[name]())
    assert list(open_source(tmp_path / name).rows()) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_windows_line_ends(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name]().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert list(open_source(tmp_path / name).rows()) == ROWS


def test_folders_of_datasets_with_splits_and_class_names(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    part = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": part, "test": part.select([0])}).save_to_disk(str(tmp_path / "both"))
    part.save_to_disk(str(tmp_path / "one"))
    part.to_parquet(str(tmp_path / "part.parquet"))
    named = [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}, {"text": "c", "label": None}]
    assert list(open_source(tmp_path / "one").rows()) == named
    assert list(open_source(tmp_path / "both").rows()) == named
    assert list(open_source(tmp_path / "both", name="test").rows()) == named[:1]
    assert list(open_source(tmp_path / "part.parquet").rows()) == named
    with pytest.raises(UsageError, match="train, test"):
        open_source(tmp_path / "both", name="dev")


class HubSplit:
    """What the hub's client streams."""

    def __init__(self, features: dict[str, datasets.ClassLabel]) -> None:
        self.features = features

    def __iter__(self) -> Iterator[dict[str, int]]:
        return iter([{"label": 1}])


def test_a_hub_id_is_asked_of_the_hub_alone_and_a_failure_is_a_user_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(name: str, **options: object) -> dict[str, HubSplit]:
        asked.append((name, options))
        if name == "org/none":
            raise ConnectionError("no such thing")
        return {"train": HubSplit({"label": datasets.ClassLabel(names=["no", "yes"])})}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(open_source("org/name").rows()) == [{"label": "yes"}]
    assert asked == [("org/name", {"streaming": True})], "no code from the hub, nothing but streaming"
    with pytest.raises(UsageError, match="no such thing"):
        list(open_source("org/none").rows())
    (tmp_path / "org").mkdir()
    with pytest.raises(UsageError, match="no file 'name'"):
        open_source("org/name")
    assert len(asked) == 2


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _loop(folder: Path) -> Path:
    (folder / "a.jsonl").symlink_to(folder / "b.jsonl")
    (folder / "b.jsonl").symlink_to(folder / "a.jsonl")
    return folder / "a.jsonl"


def _dangling(folder: Path) -> Path:
    (folder / "a.jsonl").symlink_to(folder / "gone.jsonl")
    return folder / "a.jsonl"


def _escaping(folder: Path) -> Path:
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../secret.arrow"}]}')
    return folder


GOOD = b'{"text": "good", "label": "a"}\n'
ZST = zstandard.ZstdCompressor().compress(jsonl())
HOSTILE: dict[str, tuple[Callable[[Path], Path], type[KnowhowError], str]] = {
    "empty": (written("a.jsonl", b""), UsageError, "empty"),
    "blank": (written("a.csv", b" \n\n \n"), UsageError, "empty"),
    "header alone": (written("a.csv", b"text,label\n"), UsageError, "no rows"),
    "empty gz": (written("a.jsonl.gz", gzip.compress(b"")), UsageError, "empty"),
    "empty array": (written("a.json", b"[]"), UsageError, "no rows"),
    "missing": (lambda folder: folder / "tain.jsonl", UsageError, "no file 'tain.jsonl'"),
    "missing folder": (lambda folder: folder / "gone" / "a.jsonl", UsageError, "no folder 'gone'"),
    "folder": (lambda folder: folder, UsageError, "a folder where a file belongs"),
    "device": (lambda folder: Path("/dev/null"), UsageError, "neither a file nor a folder"),
    "symlink loop": (_loop, UsageError, "leads back to itself"),
    "dangling link": (_dangling, UsageError, "does not exist"),
    "folder that points outside": (_escaping, UsageError, "leads out of the folder"),
    "name too long": (lambda folder: folder / ("x" * 5000), UsageError, "cannot be reached"),
    "NUL in the name": (lambda folder: Path(f"{folder}/a\0.jsonl"), UsageError, "cannot be reached|no file"),
    "latin-1": (written("a.jsonl", GOOD + '{"text": "café"}'.encode("latin1")), UsageError, r"a\.jsonl:2\n.*0xe9 at byte 44 is not UTF-8"),
    "latin-1 in an array": (written("a.json", b"[" + GOOD + ',{"text": "café"}]'.encode("latin1")), UsageError, r"a\.json:2\n.*0xe9 at byte 46"),
    "UTF-16": (written("a.csv", "text,label\nx,y\n".encode("utf-16")), UsageError, "UTF-16"),
    "UTF-16 without mark": (written("a.csv", "text,label\nx,y\n".encode("utf-16-le")), UsageError, "NUL byte at byte 1"),
    "NUL": (written("a.jsonl", GOOD + b'{"text": "a\0b"}\n'), UsageError, r"a\.jsonl:2\n.*NUL byte at byte 42"),
    "lone surrogate": (written("a.jsonl", GOOD + b'{"text": "a\\ud800b"}\n'), UsageError, r"a\.jsonl:2\n.*'text' holds a lone surrogate"),
    "lone surrogate in an array": (written("a.json", b'[{"t": "\\udfff"}]'), UsageError, "lone surrogate"),
    "10 MB line": (written("a.jsonl", GOOD + b'{"text": "' + b"x" * 10_000_000 + b'"}\n'), UsageError, r"a\.jsonl:2\n.*more than 8,388,608 bytes"),
    "10 MB element": (written("a.json", b'[{"text": "' + b"x" * 10_000_000 + b'"}]'), UsageError, "more than 8,388,608 bytes"),
    "10 MB cell": (written("a.csv", b'text,label\n"' + (b"x" * 99 + b"\n") * 100_000 + b'",a\n'), UsageError, "more than 8,388,608 bytes"),
    "10 MB packed": (written("a.jsonl.xz", lzma.compress(b"x" * 10_000_000)), UsageError, "more than 8,388,608 bytes"),
    "truncated gz": (written("a.jsonl.gz", gzip.compress(jsonl())[:-200]), UsageError, "ends too early"),
    "truncated xz": (written("a.jsonl.xz", lzma.compress(jsonl())[:-200]), UsageError, "ends too early"),
    "truncated zst": (written("a.jsonl.zst", ZST[: len(ZST) // 2]), UsageError, "ends too early"),
    "damaged gz": (written("a.jsonl.gz", gzip.compress(jsonl())[:300] + b"\xff" * 3000), UsageError, "damaged"),
    "gz by name alone": (written("a.jsonl.gz", jsonl()), UsageError, "not gzip"),
    "truncated parquet": (written("a.parquet", parquet()[:-100]), UsageError, "not Parquet, or damaged"),
    "truncated arrow": (written("a.arrow", arrow(False)[:-100]), UsageError, "not Arrow, or damaged"),
    "not JSON": (written("a.jsonl", GOOD + b"{text: 1}\n"), UsageError, r"a\.jsonl:2\n.*column 2"),
    "no object": (written("a.jsonl", GOOD + b'["text"]\n'), UsageError, r"a\.jsonl:2\n.*JSON list"),
    "no objects": (written("a.json", b'["text", "text"]'), UsageError, "JSON str"),
    "array broken in the middle": (written("a.json", b"[" + GOOD + b',\n{"text": broken},\n' + GOOD * 400_000), UsageError, r"a\.json:3\n.*not JSON"),
    "latin-1 far into an array": (
        written("a.json", b"[" + b",".join([GOOD] * 60_000) + ',{"text": "café"}]'.encode("latin1")),
        UsageError,
        r"a\.json:60001\n.*0xe9 at byte 1,920,014",
    ),
    "array cut off": (written("a.json", array()[:-300]), UsageError, "not JSON|not closed"),
    "array cut between": (written("a.json", b'[{"a": 1},\n{"a": 2}\n'), UsageError, "not closed"),
    "array with a tail": (written("a.json", b'[{"a": 1}] x'), UsageError, "after the end"),
    "array without comma": (written("a.json", b'[{"a": 1} {"a": 2}]'), UsageError, "',' or '\\]' belongs"),
    "deep JSON": (written("a.jsonl", b"[" * 200_000 + b"\n"), UsageError, "nested too deeply|not JSON"),
    "long number": (written("a.jsonl", b'{"a": ' + b"1" * 10_000 + b"}\n"), UsageError, "too many digits"),
    "short row": (written("a.csv", b"text,label\nx,y\nz\n"), UsageError, r"a\.csv:3\n.*1 cells where the header has 2"),
    "long row": (written("a.csv", b"text,label\nx,y\nz,y,w\n"), UsageError, r"a\.csv:3\n.*3 cells"),
    "open quote": (written("a.csv", b'text,label\nx,y\n"z,y\nq,r\n'), UsageError, r"a\.csv:3\n.*not CSV"),
    "pickle": (written("a.pkl", b"\x80\x04\x95"), SafetyError, "pickle"),
    "pickle in disguise": (written("a.jsonl", b"\x80\x04\x95\x10\0\0\0"), UsageError, "a pickle, not jsonl"),
    "spreadsheet": (written("a.xlsx", b"PK\x03\x04\x14\0\x06\0"), UsageError, "ZIP"),
    "database": (written("a.csv", b"SQLite format 3\0"), UsageError, "SQLite"),
    "unknown kind": (written("a.md", b"# heading"), UsageError, "unknown kind"),
    "label lost": (written("a.txt", b"1 good\n0 bad\n" * 150 + b"neither\n"), UsageError, r"a\.txt:301\n.*without a label"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_bad_input_is_a_one_screen_error(case: str, tmp_path: Path) -> None:
    make, kind, match = HOSTILE[case]
    with pytest.raises(kind, match=match) as caught:
        list(open_source(make(tmp_path)).rows())
    text = caught.value.text()
    assert len(text.splitlines()) <= 12
    assert len(text) < 2500
    assert caught.value.fix, "an error says what to do"


def test_the_nearest_name_is_offered(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(GOOD)
    with pytest.raises(UsageError, match=r"did you mean .*train\.jsonl"):
        open_source(tmp_path / "tain.jsonl")
    with pytest.raises(UsageError, match=r"name one of its files: train\.jsonl"):
        open_source(tmp_path)


def test_the_row_limit_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(UsageError, match="more than 10 bytes"):
        list(open_source(tmp_path / "a.jsonl", row_limit=10).rows())
    assert len(list(open_source(tmp_path / "a.jsonl", row_limit=100).rows())) == 1


def test_another_encoding_when_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,a\n".encode("latin1"))
    assert list(open_source(tmp_path / "a.csv", encoding="latin-1").rows()) == [{"text": "café", "label": "a"}]


def test_a_zstandard_bomb_is_unpacked_in_sips(tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(zstandard.ZstdCompressor().compress(bytes(200_000_000)))
    largest = max(map(len, streams.chunks(tmp_path / "a.zst")))
    assert largest < 32 * streams.CHUNK


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("spam\tbuy now\nham\thello there\nspam\tbuy again\n", {"column1": "spam", "column2": "buy now"}),
        ("kind\tbody\nspam\tbuy now\nham\thello\n", {"kind": "spam", "body": "buy now"}),
        ("id\t0\t1\t2\na\tx\ty\tz\n", {"id": "a", "0": "x", "1": "y", "2": "z"}),
        ("\tbody\t\n0\tbuy now\tx\n", {"column1": "0", "body": "buy now", "column3": "x"}),
        ("1\tgood\n0\tbad\n", {"column1": "1", "column2": "good"}),
        ('text\tlabel\n"he said ""no"""\ta\n', {"text": 'he said "no"', "label": "a"}),
        ('text\tlabel\nthe "best" "film"\ta\n', {"text": 'the "best" "film"', "label": "a"}),
    ],
)
def test_headers_are_told_from_rows(lines: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(lines)
    assert next(iter(open_source(tmp_path / "a.tsv").rows())) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("__label__a one two\n__label__b three\n", {"label": "a", "text": "one two"}),
        ("0 no\n1 yes\n0 nope\n1 yeah\n", {"label": "0", "text": "no"}),
        ("12 monkeys is a film\nanother film\n", {"text": "12 monkeys is a film"}),
        ("one\n\ntwo\n", {"text": "one"}),
    ],
)
def test_plain_text(text: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert next(iter(open_source(tmp_path / "a.txt").rows())) == expected


def test_rows_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counting(path: Path) -> Iterator[bytes]:
        for _ in range(1000):
            read.append(1)
            yield GOOD * 100

    (tmp_path / "a.jsonl").write_bytes(GOOD)
    source = open_source(tmp_path / "a.jsonl")
    monkeypatch.setattr(streams, "chunks", counting)
    assert next(iter(source.rows()))["text"] == "good"
    assert len(read) < 3


def test_real_files(shared_data: Path) -> None:
    tasks = shared_data / "tasks"
    assert sum(1 for _ in open_source(tasks / "banking77" / "train.tsv").rows()) == 8622
    assert sum(1 for _ in open_source(tasks / "healthver" / "healthver_dev.csv").rows()) == 1917
    assert sum(1 for _ in open_source(tasks / "gsm8k" / "test.jsonl.xz").rows()) == 1319
    assert next(iter(open_source(tasks / "trec" / "test.txt").rows())) == {"label": "5", "text": "How far is it from Denver to Aspen ?"}
    with pytest.raises(UsageError, match="0xf0 at byte 3,173"):
        list(open_source(tasks / "trec" / "train.txt").rows())


def test_the_schema_of_a_sequence_of_class_labels() -> None:
    info = {"info": {"features": {"tags": {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "List"}, "n": {"_type": "Value"}}}}
    table = pa.table({"tags": [[0, 1]], "n": [3]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out)
    names = columnar._class_names(pyarrow.parquet.read_schema(io.BytesIO(out.getvalue())).metadata)
    assert names == {"tags": ["x", "y"]}
