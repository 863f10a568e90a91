"""The project's own sources as the style tests see them."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "knowhow"


@cache
def trees() -> dict[str, ast.Module]:
    """{path below src/knowhow: syntax tree}, sorted."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that a clone holds: what git tracks, and new files that it does not ignore."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return tuple(path for path in map(ROOT.joinpath, sorted(filter(None, names))) if path.is_file())


def top(path: str) -> str:
    """The module of the layer table that a file belongs to: `data/audit.py` → data, `run.py` → run."""
    return path.split("/")[0].removesuffix(".py")
