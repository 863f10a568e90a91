"""Words that no file of the project may hold: doors left open, machine paths, work left undone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from source import ROOT, tracked

# Each pattern is written so that it does not match itself.
BANNED = {
    "loads code from a pickle": r"pickle[.]loads?\(|[t]orch\.load\(|joblib[.]load\(|allow_pickle[=]True|weights_only[=]",
    "runs code from a model folder": r"trust_remote_code[=]True|[\"']trust_remote_code[\"'][:] True",
    "runs a shell": r"shell[=]True|os[.]system\(",
    "a path of one machine": r"(?<![\w./$}])/(work|home|root|Users)/[\w.]+",
    "work left undone": r"\b(TO[D]O|FIX[M]E|X[X]X)\b",
    "raises instead of doing": r"raise NotImplemented[E]rror",
}
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".json", ".j2", ".css", ".js", ".txt", ".sh", ".cfg", ""}

ALLOWED: dict[str, str] = {
    "tests/contract/test_guard_hostile.py": "writes a config that asks to run code, which the guard must refuse",
}
"""{file: why it may hold a banned word}: tests that write hostile files."""

FILES = [path for path in tracked() if path.suffix in TEXT and path.stat().st_size < 2_000_000]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_banned_words(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in ALLOWED:
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    found = {why: match.group(0) for why, pattern in BANNED.items() if (match := re.search(pattern, text))}
    assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_nothing_large_is_tracked() -> None:
    large = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in tracked() if path.stat().st_size > 16_000_000}
    assert not large, f"more than 16 MB: {large}"


def test_the_rules_can_fail() -> None:
    for why, text in {
        "loads code from a pickle": "x = torch" + ".load(path)",
        "runs code from a model folder": "trust_remote_code" + "=True",
        "a path of one machine": "see /ho" + "me/someone/data",
        "work left undone": "# TO" + "DO: later",
        "raises instead of doing": "raise NotImplemented" + "Error",
        "runs a shell": "shell" + "=True",
    }.items():
        assert re.search(BANNED[why], text), why
    assert not re.search(BANNED["a path of one machine"], "https://x.org/home/page, $HOME/work/x, ../work/x")
