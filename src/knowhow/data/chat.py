"""Examples as the text that a model reads: prompts, and conversations cut into supervised and unsupervised segments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from knowhow.errors import UsageError
from knowhow.types import Example, Message, Task

Template = Callable[[list[dict[str, str]], bool], str]
"""`template(messages, add_generation_prompt)`: a tokenizer's chat template, rendered by whoever guards it."""

_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def prompt_text(example: Example, task: Task, *, template: Template | None = None) -> str:
    """What the model is given: instruction, prompt and second text; for a task of texts, up to where its answer begins.

    White space at the end of what is to be labelled goes: a causal model answers off the last token, which must not be a line break for one text
    and a word for the next. Without a template, messages become `User: …` lines, and a plain prompt ends with a line break (unless it ends with
    white space) before an answer, so that training and generation see the same boundary."""
    if task.kind != "generate":
        text = rendered(example.prompt)
        return "\n\n".join(part for part in (task.instruction, text, example.pair) if part).rstrip()
    if template is not None:
        return template(_dicts(_turns(example, task)), True)
    if isinstance(example.prompt, str):
        return _ended("\n\n".join(part for part in (task.instruction, example.prompt, example.pair) if part))
    return _plain(_turns(example, task)) + f"{_NAMES['assistant']}:"


def sft_text(example: Example, task: Task, *, template: Template | None = None, completion: int = 0) -> list[tuple[str, bool]]:
    """Segments (text, supervised) whose concatenation is the training text; only assistant turns are supervised, their end marks included.

    `completion`: which of the example's completions ends it. The caller adds the end-of-text token after the last segment of a text without a
    template. Raises UsageError when the example has no answer, or when the template changes earlier turns as a conversation grows so much that
    not even the last answer can be told from its prompt."""
    answers = [said.text for said in example.completions[completion : completion + 1]]
    if not answers and (isinstance(example.prompt, str) or example.prompt[-1].role != "assistant"):
        raise UsageError("an example without an answer", where=f"example {example.id!r}", allowed="a completion", fix="name it under data.fields.completion")
    if template is None and isinstance(example.prompt, str):
        return [(prompt_text(example, task), False), *((said, True) for said in answers)]
    turns = [*_turns(example, task), *(Message("assistant", said) for said in answers)]
    return _merged(_plain_segments(turns) if template is None else _segments(turns, template, example.id))


def rendered(prompt: str | Sequence[Message]) -> str:
    """A prompt as plain text."""
    return prompt if isinstance(prompt, str) else _plain(prompt).removesuffix("\n")


def _turns(example: Example, task: Task) -> list[Message]:
    """The prompt as messages, with the instruction in front and the second text behind."""
    if isinstance(example.prompt, str):
        body = "\n\n".join(part for part in (task.instruction, example.prompt, example.pair) if part)
        return [Message("user", body)]
    turns = list(example.prompt)
    if example.pair:
        turns.append(Message("user", example.pair))
    if not task.instruction:
        return turns
    if turns[0].role == "system":
        return [Message("system", f"{task.instruction}\n\n{turns[0].content}"), *turns[1:]]
    return [Message("system", task.instruction), *turns]


def _segments(turns: Sequence[Message], template: Template, example_id: str) -> list[tuple[str, bool]]:
    """Cut the rendered conversation where each answer begins and ends; a template that rewrites earlier turns leaves only the last answer supervised."""
    whole = template(_dicts(turns), False)
    segments: list[tuple[str, bool]] = []
    done = 0
    for index in (index for index, turn in enumerate(turns) if turn.role == "assistant"):
        before, after = template(_dicts(turns[:index]), True), template(_dicts(turns[: index + 1]), False)
        if not (whole.startswith(before) and whole.startswith(after) and done <= len(before) < len(after)):
            continue
        segments += [(whole[done : len(before)], False), (whole[len(before) : len(after)], True)]
        done = len(after)
    if not segments or not any(supervised for _, supervised in segments):
        got = "a chat template whose rendering of the prompt is not the beginning of its rendering of the conversation"
        raise UsageError(got, where=f"example {example_id!r}", allowed="a template that renders turns in order", fix="use the base's own template, or none")
    return [*segments, (whole[done:], False)]


def _plain_segments(turns: Sequence[Message]) -> list[tuple[str, bool]]:
    segments = []
    for turn in turns:
        if turn.role == "assistant":
            segments += [(f"{_NAMES['assistant']}:", False), (f" {turn.content}\n", True)]
        else:
            segments.append((_plain([turn]), False))
    return segments


def _merged(segments: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Neighbours of one kind joined, empty ones dropped: fewer borders, fewer odd tokens."""
    merged: list[tuple[str, bool]] = []
    for text, supervised in segments:
        if merged and text and merged[-1][1] == supervised:
            merged[-1] = (merged[-1][0] + text, supervised)
        elif text:
            merged.append((text, supervised))
    return merged


def _plain(turns: Sequence[Message]) -> str:
    return "".join(f"{_NAMES.get(turn.role, turn.role)}: {turn.content}\n" for turn in turns)


def _dicts(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _ended(text: str) -> str:
    return text if text[-1:].isspace() else text + "\n"
