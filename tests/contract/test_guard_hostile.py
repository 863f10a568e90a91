"""Every hostile folder is refused before any library opens it, with a named reason on one screen and exit code 4."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
import transformers

from knowhow.errors import SAFETY, USAGE, SafetyError, UsageError
from knowhow.model import toys
from knowhow.model.guard import check_file, check_folder
from knowhow.model.load import load


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.twin("llama", tmp_path_factory.mktemp("guard") / "llama")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def edit(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **values}))


def parts(folder: Path) -> tuple[dict, bytes]:
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def put(folder: Path, header: dict | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def change(folder: Path, act: Callable[[dict, list[str]], object], data: Callable[[bytes], bytes] = bytes) -> None:
    header, body = parts(folder)
    act(header, sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"]))
    put(folder, header, data(body))


def overlap(header: dict, names: list[str]) -> None:
    first, second = header[names[0]], header[names[1]]
    size = second["data_offsets"][1] - second["data_offsets"][0]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]


def hole(header: dict, names: list[str]) -> None:
    last = header[names[-1]]
    last["data_offsets"] = [offset + 4 for offset in last["data_offsets"]]


def duplicate(folder: Path) -> None:
    header, body = parts(folder)
    name = next(name for name in header if name != "__metadata__")
    text = json.dumps(header).encode()
    put(folder, b"{" + json.dumps(name).encode() + b":" + json.dumps(header[name]).encode() + b"," + text[1:], body)


def poison(value: float, dtype: str = "<f4") -> Callable[[bytes], bytes]:
    return lambda body: body[:-4] + np.array([value], dtype).tobytes()[-4:]


def index(folder: Path, shard: str, tensor: str = "model.norm.weight") -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {tensor: shard}}))


def link(folder: Path, target: str, name: str = "notes.txt") -> None:
    (folder / name).symlink_to(target)


LOOP = "{% for i in range(messages[0].content|int) %}x{% endfor %}"
SLOW = "{% for i in range(1000) %}{% for j in range(1000) %}{% for k in range(1000) %}{% endfor %}{% endfor %}{% endfor %}"

HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda f: (f / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1})), "pickle-like file"),
    "pt": (lambda f: (f / "weights.pt").write_bytes(b"x"), "pickle-like file"),
    "pkl in a subfolder": (lambda f: ((f / "sub").mkdir(), (f / "sub" / "a.pkl").write_bytes(b"x")), "pickle-like file"),
    "npy": (lambda f: np.save(f / "a.npy", np.zeros(2)), "pickle-like file"),
    "pickle as text": (lambda f: (f / "notes.txt").write_bytes(pickle.dumps([1], protocol=4)), "is a pickle, whatever"),
    "pickle as safetensors": (lambda f: (f / "model.safetensors").write_bytes(pickle.dumps([1] * 100)), "safetensors"),
    "old pickle without an ending": (lambda f: (f / "weights").write_bytes(b"cos\nsystem\n(S'id'\ntR."), "is a pickle, whatever"),
    "zip as json": (lambda f: (f / "extra.json").write_bytes(b"PK\x03\x04" + bytes(60)), "zip archive"),
    "numpy as model": (lambda f: (f / "tokenizer.model").write_bytes(b"\x93NUMPY\x01\x00" + bytes(20)), "numpy file"),
    "python": (lambda f: (f / "modeling_x.py").write_text("import os"), "program file"),
    "custom_generate folder": (lambda f: ((f / "custom_generate").mkdir(), (f / "custom_generate" / "generate.py").write_text("")), "program file"),
    "shared object": (lambda f: (f / "x.so").write_bytes(b"\x7fELF"), "program file"),
    "elf as text": (lambda f: (f / "LICENSE").write_bytes(b"\x7fELF" + bytes(20)), "is a program, whatever"),
    "script": (lambda f: (f / "setup").write_text("#!/bin/sh\nid"), "is a script, whatever"),
    "auto_map": (lambda f: edit(f, "config.json", auto_map={"AutoModel": "x--y.Z"}), "auto_map"),
    "auto_map in the tokenizer": (lambda f: edit(f, "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}), "auto_map"),
    "auto_map deep inside": (lambda f: edit(f, "processor_config.json", a=[{"b": {"auto_map": {"c": "d"}}}]), "auto_map"),
    "trust_remote_code": (lambda f: edit(f, "config.json", trust_remote_code=True), "trust_remote_code"),
    "custom_pipelines": (lambda f: edit(f, "config.json", custom_pipelines={"x": {"impl": "a.B"}}), "custom_pipelines"),
    "another config file": (lambda f: edit(f, "config.json", configuration_files=["config.9.json"]), "configuration_files"),
    "another weights file": (lambda f: edit(f, "config.json", transformers_weights="../other.safetensors"), "transformers_weights"),
    "kernel from the hub": (lambda f: edit(f, "config.json", _attn_implementation="somebody/kernel"), "kernel"),
    "gguf": (lambda f: edit(f, "tokenizer_config.json", gguf_file="x/y.gguf"), "gguf_file"),
    "tokenizer file elsewhere": (lambda f: edit(f, "tokenizer_config.json", vocab_file="../../secret"), "out of the folder"),
    "symlink out": (lambda f: link(f, "/etc/hostname"), "symbolic link"),
    "symlink inside": (lambda f: link(f, "config.json"), "symbolic link"),
    "symlinked folder": (lambda f: link(f, "/tmp", "more"), "symbolic link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "device, pipe or socket"),
    "shard with ../": (lambda f: index(f, "../other/model.safetensors"), "plain file name"),
    "shard with a root": (lambda f: index(f, "/etc/model.safetensors"), "plain file name"),
    "tensor not in its shard": (lambda f: index(f, "model.safetensors", "nothing"), "it does not"),
    "unknown model type": (lambda f: edit(f, "config.json", model_type="evil"), "model_type"),
    "unknown architecture": (lambda f: edit(f, "config.json", architectures=["EvilForCausalLM"]), "unknown architecture"),
    "another family's architecture": (lambda f: edit(f, "config.json", architectures=["GPT2LMHeadModel"]), "unknown architecture"),
    "a vision model": (lambda f: edit(f, "config.json", model_type="vit", architectures=["ViTModel"]), "model_type"),
    "truncated": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-10]), "truncated"),
    "cut in its header": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]), "truncated"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated"),
    "oversized header": (lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + bytes(64)), "header"),
    "big header": (lambda f: put(f, b"{" + b" " * (33 << 20) + b"}", b""), "oversized header"),
    "no tensors": (lambda f: put(f, {}, b""), "0 tensors"),
    "overlapping tensors": (lambda f: change(f, overlap), "overlapping tensors"),
    "a hole": (lambda f: change(f, hole, lambda body: body + bytes(4)), "hole"),
    "bytes after the end": (lambda f: change(f, lambda header, names: None, lambda body: body + bytes(8)), "belong to none"),
    "shape that lies": (lambda f: change(f, lambda header, names: header[names[0]].update(shape=[1, 1])), "its offsets span"),
    "unknown dtype": (lambda f: change(f, lambda header, names: header[names[0]].update(dtype="PICKLE")), "dtype"),
    "negative shape": (lambda f: change(f, lambda header, names: header[names[0]].update(shape=[-1, -2])), "shape"),
    "endless shape": (lambda f: change(f, lambda header, names: header[names[0]].update(shape=[1 << 60, 1 << 60])), "shape"),
    "offsets reversed": (lambda f: change(f, lambda header, names: header[names[0]].update(data_offsets=[8, 0])), "data_offsets"),
    "extra field": (lambda f: change(f, lambda header, names: header[names[0]].update(code="x")), "entry"),
    "duplicate tensor": (duplicate, "duplicate key"),
    "metadata not texts": (lambda f: change(f, lambda header, names: header.update(__metadata__={"a": [1]})), "__metadata__"),
    "deep header": (lambda f: put(f, b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""), "nested too deep"),
    "NaN weights": (lambda f: change(f, lambda header, names: None, poison(float("nan"))), "NaN or infinite weights"),
    "infinite weights": (lambda f: change(f, lambda header, names: None, poison(float("-inf"))), "NaN or infinite weights"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config with NaN": (lambda f: (f / "config.json").write_text('{"model_type": "llama", "rope_theta": NaN}'), "NaN"),
    "config with a key twice": (lambda f: (f / "config.json").write_text('{"model_type": "llama", "model_type": "llama"}'), "duplicate key"),
    "deep JSON": (lambda f: (f / "extra.json").write_text("[" * 200_000 + "]" * 200_000), "nested too deep"),
    "huge hidden size": (lambda f: edit(f, "config.json", hidden_size=1 << 40), "hidden_size"),
    "hidden size not in the weights": (lambda f: edit(f, "config.json", hidden_size=64), "hidden_size"),
    "negative layers": (lambda f: edit(f, "config.json", num_hidden_layers=-3), "num_hidden_layers"),
    "layers as text": (lambda f: edit(f, "config.json", num_hidden_layers="2"), "num_hidden_layers"),
    "layers not in the weights": (lambda f: edit(f, "config.json", num_hidden_layers=1000), "1000 layers"),
    "vocabulary not in the weights": (lambda f: edit(f, "config.json", vocab_size=5_000_000), "vocabulary of 5000000"),
    "a million labels": (lambda f: edit(f, "config.json", id2label={str(label): "x" for label in range(70_000)}), "id2label"),
    "beams": (lambda f: edit(f, "generation_config.json", num_beams=10_000), "num_beams"),
    "adapter beside the model": (lambda f: edit(f, "adapter_config.json", peft_type="LORA", base_model_name_or_path="a/b"), "adapter_config.json"),
    "looping template": (lambda f: (f / "chat_template.jinja").write_text(LOOP), "size taken from the request"),
    "slow template": (lambda f: (f / "chat_template.jinja").write_text(SLOW), "steps"),
    "long template": (lambda f: (f / "chat_template.jinja").write_text("x" * 200_000), "over-long"),
    "template in the config": (lambda f: edit(f, "tokenizer_config.json", chat_template=LOOP), "size taken from the request"),
    "template in a list": (lambda f: edit(f, "tokenizer_config.json", chat_template=[{"name": "a", "template": LOOP}]), "size taken from the request"),
    "template into Python": (lambda f: edit(f, "chat_template.json", chat_template="{{ messages.__class__ }}"), "reaches into Python"),
    "long pattern": (lambda f: edit(f, "extra.json", pre_tokenizer={"Regex": "(a+)+" * 2000}), "pattern"),
    "many folders": (lambda f: (f / "/".join("d" * 12)).mkdir(parents=True), "levels of folders"),
}  # fmt: skip


def test_a_good_folder_passes(good: Path) -> None:
    report = check_folder(good)
    assert report.kind == "model"
    assert report.model_type == "llama"
    assert report.weight_bytes == 4 * report.parameters
    assert set(report.files) >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_harmless_files_are_ignored(folder: Path) -> None:
    before = check_folder(folder).sha256
    for name in ("README.md", "picture.png", "report.html", "LICENSE", "notes.txt"):
        (folder / name).write_bytes(b"\x89PNG harmless")
    assert check_folder(folder).sha256 == before


@pytest.mark.parametrize("case", HOSTILE)
def test_refused_before_it_is_opened(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, reason = HOSTILE[case]
    spoil(folder)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a library opened the folder")

    for owner, name in ((transformers.AutoConfig, "from_pretrained"), (transformers.AutoTokenizer, "from_pretrained"), (safetensors, "safe_open")):
        monkeypatch.setattr(owner, name, opened)
    with pytest.raises(SafetyError) as caught:
        load(str(folder))
    assert reason in caught.value.got
    assert caught.value.exit_code == SAFETY
    assert len(caught.value.text().splitlines()) <= 12


MISSING: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "shard not there": (lambda f: index(f, "model-00009-of-00009.safetensors"), "model-00009"),
    "quantised": (lambda f: edit(f, "config.json", quantization_config={"quant_method": "gptq"}), "quantised"),
    "not a folder": (lambda f: (shutil.rmtree(f), f.write_text("x")), "is a file"),
    "not there": (shutil.rmtree, "no folder here"),
}


@pytest.mark.parametrize("case", MISSING)
def test_missing_things_are_usage_errors(case: str, folder: Path) -> None:
    spoil, reason = MISSING[case]
    spoil(folder)
    with pytest.raises(UsageError) as caught:
        load(str(folder))
    assert reason in caught.value.got
    assert caught.value.exit_code == USAGE
    assert caught.value.allowed or caught.value.fix


ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"peft_type": "EVIL"}, "adapter of type"),
        ({"auto_mapping": {"base_model_class": "Popen", "parent_library": "subprocess"}}, "auto_mapping"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"layer_replication": [[0, 100000]]}, "layer_replication"),
        ({"r": 1 << 30}, "r = "),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"target_modules": "(a+)+" * 1000}, "pattern"),
    ],
)
def test_hostile_adapters_are_refused(values: dict, reason: str, folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    edit(folder, "adapter_config.json", **ADAPTER)
    assert check_folder(folder).kind == "adapter"
    edit(folder, "adapter_config.json", **values)
    with pytest.raises(SafetyError) as caught:
        check_folder(folder)
    assert reason in caught.value.got


def test_data_files(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (inside / "rows.jsonl").write_text("{}\n")
    (outside / "secret.jsonl").write_text("{}\n")
    (inside / "link.jsonl").symlink_to(inside / "rows.jsonl")
    (inside / "escape.jsonl").symlink_to(outside / "secret.jsonl")
    (inside / "loop.jsonl").symlink_to(inside / "loop.jsonl")
    (inside / "rows.pkl").write_bytes(b"x")
    (inside / "rows.csv").write_bytes(pickle.dumps([1]))
    assert check_file(inside / "rows.jsonl") == (inside / "rows.jsonl").resolve()
    assert check_file(inside / "link.jsonl") == (inside / "rows.jsonl").resolve()
    refused = {"escape.jsonl": "leads out", "rows.pkl": "pickle-like", "rows.csv": "is a pickle", "/dev/zero": "device"}
    for path, reason in ((inside / name, reason) for name, reason in refused.items()):
        with pytest.raises(SafetyError, match=reason):
            check_file(path)
    with pytest.raises(SafetyError, match="leads out"):
        check_file(inside / ".." / "elsewhere" / "secret.jsonl", root=inside)
    with pytest.raises(SafetyError, match="at most"):
        check_file(inside / "rows.jsonl", limit=1)
    for path in (inside, inside / "nothing", inside / "loop.jsonl", Path("a\0b")):
        with pytest.raises(UsageError):
            check_file(path)


@pytest.mark.parametrize("dtype, bits", [("F16", 0x7C00), ("BF16", 0x7F80), ("F64", None), ("F8_E5M2", 0x7C), ("F8_E4M3", 0x7F)])
def test_nan_is_seen_in_every_float_format(dtype: str, bits: int | None, tmp_path: Path) -> None:
    from knowhow.model.weights import BYTES, read_header, scan

    width = BYTES[dtype]
    bad = np.array([np.nan]).tobytes() if bits is None else int(bits).to_bytes(width, "little")
    fine = np.ones(1).tobytes() if bits is None else (1).to_bytes(width, "little")
    for value, refused in ((fine, False), (bad, True)):
        path = tmp_path / f"{refused}.safetensors"
        body = fine * 3 + value
        text = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, 4 * width]}}).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)
        header = read_header(path)
        if refused:
            with pytest.raises(SafetyError, match="NaN"):
                scan(path, header)
        else:
            assert len(scan(path, header)) == 64
