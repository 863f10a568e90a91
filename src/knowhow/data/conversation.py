"""Chat cells: `messages` (role, content), ShareGPT `conversations` (from, value), tools, and preference pairs, as Message tuples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from knowhow.errors import UsageError
from knowhow.types import Message

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "function_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool",
}  # fmt: skip
"""Every role that is understood, and the one it becomes. A `function_call` is something the assistant says, an `observation` what a tool answered."""
_SHAPE = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}] or [{"from": "human", "value": "…"}, …]'


def is_conversation(cell: Any) -> bool:
    """True for a non-empty list of objects with role/content or from/value (or such a list as JSON text)."""
    cell = _parsed(cell)
    return isinstance(cell, list) and bool(cell) and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in cell)


def messages(cell: Any, where: str) -> tuple[Message, ...]:
    """The turns of one cell. Raises UsageError for another shape, an unknown role or a turn without text."""
    cell = _parsed(cell)
    if isinstance(cell, Mapping):
        cell = [cell]
    if not isinstance(cell, list) or not cell:
        raise UsageError(f"no list of messages but {_shown(cell)}", where=where, allowed=_SHAPE, fix="name the right field under data.fields.messages")
    return tuple(_message(turn, f"{where}, message {index + 1}") for index, turn in enumerate(cell))


def with_context(turns: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """Put a row's own `system` and `tools` columns into the system message, where a model can see them."""
    said = [str(row[name]) for name in ("system", "tools") if isinstance(row.get(name), str) and row[name].strip() not in ("", "[]")]
    if not isinstance(row.get("tools"), str) and row.get("tools"):
        said.append(json.dumps(row["tools"], ensure_ascii=False))
    if not said:
        return turns
    first, rest = (turns[0].content, turns[1:]) if turns and turns[0].role == "system" else ("", turns)
    return (Message("system", "\n\n".join(part for part in (first, *said) if part)), *rest)


def parted(turns: tuple[Message, ...], where: str) -> tuple[tuple[Message, ...], str | None]:
    """(prompt, the last answer); the answer is None when the conversation does not end with one. Raises UsageError when nothing is left to answer."""
    ends = turns[-1].role == "assistant"
    prompt = turns[:-1] if ends else turns
    if not prompt:
        raise UsageError(
            "a conversation that is one answer to nothing",
            where=where,
            allowed="at least one user message before it",
            fix="add the question, or remove the row",
        )
    return prompt, turns[-1].content if ends else None


def answer(cell: Any, prompt: Sequence[Message], where: str) -> tuple[tuple[Message, ...], str]:
    """A chosen or rejected cell as (turns before the answer, answer): a text, one message, or a whole conversation that repeats the prompt."""
    if isinstance(cell, str) and not is_conversation(cell):
        if not cell.strip():
            raise UsageError("an empty answer", where=where, allowed="a text or messages", fix="fill it in, or remove the row")
        return tuple(prompt), cell
    turns = messages(cell, where)
    if turns[-1].role != "assistant":
        raise UsageError(
            f"it ends with a {turns[-1].role} message", where=where, allowed="an assistant's message at the end", fix="remove what follows the answer"
        )
    before = turns[:-1]
    repeats = len(before) >= len(prompt) and before[: len(prompt)] == tuple(prompt)
    return (before if repeats else (*prompt, *before)), turns[-1].content


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise UsageError(f"no message but {_shown(turn)}", where=where, allowed=_SHAPE, fix="correct or remove the row")
    role = str(turn.get("role", turn.get("from", "")))
    if role.lower() not in ROLES:
        raise UsageError(f"the role {role!r}", where=where, allowed=", ".join(ROLES), fix="rename the role")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)
    if turn.get("tool_calls"):
        content = "\n".join(filter(None, [content if isinstance(content, str) else "", json.dumps(turn["tool_calls"], ensure_ascii=False)]))
    if not isinstance(content, str):
        raise UsageError(f"a message without text: {_shown(content)}", where=where, allowed=_SHAPE, fix="fill it in, or remove the row")
    return Message(ROLES[role.lower()], content)


def _parsed(cell: Any) -> Any:
    if isinstance(cell, str) and cell.lstrip().startswith("[{"):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
