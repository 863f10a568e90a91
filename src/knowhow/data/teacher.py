"""An OpenAI-compatible endpoint as a teacher: asked only when the user named one, with retries, a budget, and answers that are read with suspicion."""

from __future__ import annotations

import json
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from knowhow.data.streams import holds_surrogate
from knowhow.errors import UsageError

_ANSWER_LIMIT = 4 * 2**20
_LOCAL = {"127.0.0.1", "localhost", "::1"}
_RETRY = {408, 409, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Budget:
    """Limits over all requests together: how many, how many tries of one, and seconds."""

    requests: int = 200
    tries: int = 5
    seconds: float = 1800.0
    timeout: float = 120.0


@dataclass
class Teacher:
    """`url`: the endpoint's base (…/v1). `key_env`: the environment variable that holds the key; without it none is sent.

    `sleep` and `clock` are passed in so that a test need not wait."""

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    spent: int = 0
    started: float | None = None

    def reply(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """The answer's text; None when the budget is spent. Raises UsageError when the endpoint cannot be reached, refuses, or answers in another form."""
        if self.started is None:
            self._check()
            self.started = self.clock()
        body = {"model": self.model, "messages": list(messages), "temperature": 1.0, "seed": self.seed + self.spent}
        draws = random.Random(f"{self.seed}/{self.spent}")
        problem = ""
        for attempt in range(self.budget.tries):
            if self.spent >= self.budget.requests or self.clock() - self.started > self.budget.seconds:
                return None
            self.spent += 1
            text, problem, wait = self._once(body)
            if text is not None:
                return text
            # Full jitter (Brooker 2015): tries of many clients do not come in step.
            self.sleep(wait if wait is not None else draws.uniform(0, min(60.0, 2.0**attempt)))
        raise UsageError(
            f"no answer after {self.budget.tries} tries: {problem}",
            where=self.url,
            allowed="an endpoint that answers",
            fix="try later, or lower data.synthesize.rows",
        )

    def _once(self, body: Mapping[str, Any]) -> tuple[str | None, str, float | None]:
        """(answer, problem, seconds to wait as the server asked)."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address(), json.dumps(body).encode(), headers, method="POST")
        try:
            with _opener().open(request, timeout=self.budget.timeout) as response:
                return self._text(response.read(_ANSWER_LIMIT + 1)), "", None
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode("utf-8", "replace")
            if error.code in _RETRY:
                return None, f"HTTP {error.code}", _seconds(error.headers.get("Retry-After"))
            raise _refused(error.code, said, self) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            return None, str(error), None

    def _text(self, raw: bytes) -> str:
        if len(raw) > _ANSWER_LIMIT:
            raise UsageError(f"an answer of more than {_ANSWER_LIMIT / 2**20:g} MB", where=self.url, fix="ask another model")
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise UsageError(
                f"an answer of another form: {raw[:120]!r}", where=self.url, allowed="OpenAI's chat completions", fix="check data.synthesize.teacher_url"
            ) from error
        return content if isinstance(content, str) else ""

    def _address(self) -> str:
        return self.url.rstrip("/") + "/chat/completions"

    def _check(self) -> None:
        """A key never travels in the clear, except to this machine."""
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"the address {self.url!r}", where="data.synthesize.teacher_url", allowed="https://host/v1, or http://localhost:port/v1", fix="correct it"
            )
        if parts.scheme == "http" and parts.hostname not in _LOCAL and os.environ.get(self.key_env):
            got = f"http:// to {parts.hostname} would send the key of {self.key_env} in the clear"
            raise UsageError(got, where="data.synthesize.teacher_url", allowed="https, or http to this machine", fix=f"use https, or unset {self.key_env}")


def rows_of(answer: str) -> list[dict[str, Any]] | None:
    """The rows of `{"rows": [{…}, …]}` (or of a bare array), also inside a code fence; None when there is no such JSON. Rows of another type are dropped."""
    start = min((at for at in (answer.find("{"), answer.find("[")) if at >= 0), default=-1)
    if start < 0:
        return None
    try:
        found = json.JSONDecoder().raw_decode(answer, start)[0]
    except (ValueError, RecursionError):
        return None
    rows = found.get("rows") if isinstance(found, dict) else found
    if not isinstance(rows, list):
        return None
    return [row for row in rows if isinstance(row, dict) and not holds_surrogate(row)]


def _opener() -> urllib.request.OpenerDirector:
    """Without redirects: a redirect would carry the key to a host that the user did not name."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener


def _seconds(said: str | None) -> float | None:
    """Retry-After in seconds, at most a minute."""
    return min(60.0, float(said)) if said and said.strip().isdigit() else None


def _refused(code: int, said: str, teacher: Teacher) -> UsageError:
    fixes = {
        401: f"put a valid key into {teacher.key_env}",
        403: f"put a valid key into {teacher.key_env}",
        404: "check data.synthesize.teacher_url and teacher_model",
    }
    got = f"the teacher refused (HTTP {code}): {said[:200]}"
    return UsageError(
        got, where=teacher.url, allowed="an OpenAI-compatible endpoint and a model it has", fix=fixes.get(code, "check the address and the model")
    )
