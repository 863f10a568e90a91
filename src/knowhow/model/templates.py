"""Chat templates are programs in somebody else's folder: read as syntax first, then tried in a killable worker, and rendered under a budget.

Three caps hold at every rendering: steps (lines of template executed), output, and the size of any value the template builds. A template may
loop over the messages; it may not take a loop's or a text's size from the *value* of something in the request.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from knowhow.errors import SafetyError
from knowhow.model.template_syntax import Unsafe, check_syntax

LENGTH_LIMIT = 1 << 17
STEP_LIMIT = 200_000
OUTPUT_LIMIT = 1 << 22
CPU_SECONDS, WALL_SECONDS, MEMORY = 4, 60, 512 << 20


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words; for rendering it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check(template: str, *, where: str) -> None:
    """Refuses (SafetyError) a template that is over-long, reaches into Python, sizes a loop by the request, or runs past its caps on hostile probes."""
    reason = _reason(template)
    if reason:
        raise SafetyError(f"chat template: {reason}", where=where, fix="correct the template, or remove it and use a plain format")


def render(template: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False, variables: Mapping[str, Any] | None = None) -> str:
    """The text of a conversation under the step, output and value caps. `variables`: bos_token, eos_token, tools …

    Raises SafetyError when a cap is passed, jinja2.TemplateError when the template itself objects to the messages."""
    environment = _environment()
    compiled = environment.from_string(template)
    context = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **(variables or {})}
    with _Budget() as budget:
        try:
            return budget.collect(compiled.generate(**context))
        except Unsafe as error:
            raise SafetyError(f"chat template: {error}", fix="correct the template") from None


class _Budget:
    """Counts the template's own lines (and calls) through the interpreter's trace hook, and looks at the values it holds."""

    def __init__(self) -> None:
        self.steps = 0
        self.previous: Any = None

    def __enter__(self) -> _Budget:
        self.previous = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.previous)

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise Unsafe(f"runs past {STEP_LIMIT} steps")
        if frame.f_code.co_filename != "<template>":
            return None
        for value in frame.f_locals.values():
            if isinstance(value, str | list | tuple) and len(value) > OUTPUT_LIMIT:
                raise Unsafe(f"builds a value of {len(value)} items")
        return self.trace

    def collect(self, chunks: Any) -> str:
        parts, length = [], 0
        for chunk in chunks:
            parts.append(chunk)
            length += len(chunk)
            if length > OUTPUT_LIMIT:
                raise Unsafe(f"writes more than {OUTPUT_LIMIT} characters")
        return "".join(parts)


@functools.lru_cache(maxsize=256)
def _reason(template: str) -> str:
    """Why it is refused; empty when it is not."""
    if len(template) > LENGTH_LIMIT:
        return f"over-long: {len(template)} characters, at most {LENGTH_LIMIT}"
    try:
        check_syntax(_environment().parse(template))
    except (jinja2.TemplateError, RecursionError) as error:
        return f"cannot be read: {str(error)[:200] or type(error).__name__}"
    except Unsafe as error:
        return str(error)
    return _probe(template)


def _environment() -> ImmutableSandboxedEnvironment:
    """The names that transformers gives a chat template, and no more."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.globals.pop("lipsum", None)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _probe(template: str) -> str:
    """Renders hostile conversations in a process of its own with caps on time and memory. Returns why it is refused, or nothing."""
    command = [sys.executable, "-c", "from knowhow.model.templates import work; work()"]
    try:
        done = subprocess.run(command, input=json.dumps(template), capture_output=True, text=True, timeout=WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"still running after {WALL_SECONDS} s"
    if done.returncode:
        return f"killed at its cap of {CPU_SECONDS} s and {MEMORY >> 20} MB" if done.returncode < 0 else "fails outside the sandbox"
    return json.loads(done.stdout)


def work() -> None:
    """The worker: a template on stdin, the reason to refuse it (or an empty text) on stdout, both as JSON."""
    _limit()
    template = json.loads(sys.stdin.read())
    sys.stdout.write(json.dumps(_try(template)))


def _try(template: str) -> str:
    for messages in _probes():
        for prompt in (False, True):
            variables = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tools": None}
            try:
                render(template, messages, add_generation_prompt=prompt, variables=variables)
            except SafetyError as error:
                return error.got.removeprefix("chat template: ")
            except (MemoryError, RecursionError) as error:
                return f"runs out of memory or stack ({type(error).__name__})"
            except jinja2.exceptions.SecurityError as error:
                return f"reaches into Python ({str(error)[:120]})"
            except Exception:  # a template may object to a conversation in any way; only its cost matters here
                continue
    return ""


def _probes() -> list[list[dict[str, Any]]]:
    """Conversations that a hostile client could send: huge numbers as text and as values, long texts, many turns."""
    number, text = "999999999", "word " * 400
    turns = [{"role": ("user", "assistant")[index % 2], "content": f"{number}{index}"} for index in range(64)]
    return [
        [{"role": "user", "content": number, "n": 999999999, "size": 999999999}],
        [{"role": "system", "content": "9" * 30}, {"role": "user", "content": text}],
        [{"role": "user", "content": text}],
        [{"role": "user", "content": [{"type": "text", "text": text}]}],
        turns,
    ]


def _limit() -> None:
    try:
        import resource
    except ImportError:  # no such caps on this system: the step, output and wall caps remain
        return
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
