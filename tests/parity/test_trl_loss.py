"""Twenty float32 losses against TRL's SFTTrainer on the same batches, where bench/sft_speed.py has made its environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / ".bench" / "trl" / "ready"

TWIN = """
import sys
from pathlib import Path
bench, folder = map(Path, sys.argv[1:])
sys.path.insert(0, str(bench))
import sft_speed
sft_speed.data.llama(d=64, layers=2, feed_forward=96).save_pretrained(folder / "model")
sft_speed.data.tokenizer_for("llama", 320).save_pretrained(folder / "model")
ours, theirs = sft_speed.equal_curves(folder / "rows", folder / "model", 3e-3)
assert ours["tokens"] == theirs["tokens"] and len(ours["losses"]) == 20
print(ours["losses"][0] - ours["losses"][-1], max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)))
"""


@pytest.mark.slow
def test_the_curve_is_trl_s(tmp_path: Path) -> None:
    if not PEER.is_file():
        pytest.skip("TRL is not installed beside the project; python bench/sft_speed.py makes its environment")
    done = subprocess.run([sys.executable, "-c", TWIN, str(ROOT / "bench"), str(tmp_path)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    fell, apart = map(float, done.stdout.split()[-2:])
    assert fell > 0.1
    assert apart <= 1e-3
