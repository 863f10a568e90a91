"""`knowhow schema`."""

from __future__ import annotations

import json

from knowhow import reading
from knowhow.commands.output import Output


def schema(output: Output) -> None:
    found = reading.schema()
    output.result(found, json.dumps(found, indent=1, ensure_ascii=False))
