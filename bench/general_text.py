"""Makes src/knowhow/evaluate/general.jsonl.xz, the general-text sample, from novels that no model here is trained on.

python bench/general_text.py DATA/text/novels_valid.jsonl.xz
"""

from __future__ import annotations

import json
import lzma
import re
import sys
from pathlib import Path

from knowhow.files import write_atomic

OUT = Path(__file__).resolve().parents[1] / "src/knowhow/evaluate/general.jsonl.xz"
PASSAGES, WORDS = 10, 250
HEADER = {
    "source": "ELTeC-eng, six English novels first published 1847-1915: Aguilar, Home Influence; Braddon, Lady Audley's Secret; "
    "Trollope, Harry Heathcote of Gangoil; Yeats, John Sherman and Dhoya; Baring-Gould, Domitia; Buchan, The Thirty-Nine Steps",
    "licence": "public domain (the texts); taken from ELTeC, whose markup is CC BY 4.0",
    "drawn": f"{PASSAGES} passages per novel at equal steps, each from a paragraph's start to the sentence end after {WORDS} words",
}


def passage(text: str, start: int) -> str:
    """From the next paragraph after `start` up to the first sentence end after WORDS words."""
    begin = text.index("\n", start) + 1
    words = list(re.finditer(r"\S+", text[begin : begin + WORDS * 20]))
    ends = [match.end() for match in words[WORDS - 1 :] if re.search(r"[.!?][\"'”’]?$", match.group())]
    return text[begin : begin + ends[0]]


def main() -> None:
    with lzma.open(sys.argv[1], "rt", encoding="utf-8") as lines:
        novels = [json.loads(line) for line in lines]
    rows: list[dict[str, str]] = [HEADER]
    for novel in novels:
        step = len(novel["text"]) // (PASSAGES + 1)
        rows += [{"source": novel["id"], "text": passage(novel["text"], step * (place + 1))} for place in range(PASSAGES)]
    write_atomic(OUT, lzma.compress("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(rows) - 1} passages, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
