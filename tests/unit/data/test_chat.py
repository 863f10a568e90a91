"""Prompts and supervised segments: what is trained on is what follows what is prompted with."""

from __future__ import annotations

import pytest

from knowhow.data.chat import prompt_text, sft_text
from knowhow.errors import UsageError
from knowhow.types import Completion, Example, Message, Task

GENERATE = Task("generate", instruction="Be brief.")
CHAT = Example("1", (Message("user", "hi"), Message("assistant", "hello"), Message("user", "bye")), (Completion("see you"),))
PLAIN = Example("2", "Translate: cat", (Completion("chat"), Completion("katze", "rejected")), pair="to French")


def chatml(messages: list[dict[str, str]], ask: bool) -> str:
    return "".join(f"<{turn['role']}>{turn['content']}</s>" for turn in messages) + ("<assistant>" if ask else "")


def forgetful(messages: list[dict[str, str]], ask: bool) -> str:
    """Drops the content of earlier answers, as templates that hide old reasoning do."""
    last = len(messages) - 1
    return "".join(f"<{turn['role']}>{turn['content'] if turn['role'] != 'assistant' or n == last else ''}</s>" for n, turn in enumerate(messages)) + (
        "<assistant>" if ask else ""
    )


def backwards(messages: list[dict[str, str]], ask: bool) -> str:
    return chatml(messages, ask)[::-1]


@pytest.mark.parametrize("template", [None, chatml, forgetful])
@pytest.mark.parametrize("example", [CHAT, PLAIN])
def test_training_text_begins_with_the_prompt(example: Example, template: object) -> None:
    segments = sft_text(example, GENERATE, template=template)
    text = "".join(part for part, _ in segments)
    prompt = prompt_text(example, GENERATE, template=template)
    assert text.startswith(prompt)
    answer = example.completions[0].text
    assert [part.strip().removesuffix("</s>") for part, supervised in segments if supervised][-1] == answer
    assert text[len(prompt) :].strip().startswith(answer)


def test_only_assistant_turns_are_supervised_with_their_end_marks() -> None:
    segments = sft_text(CHAT, GENERATE, template=chatml)
    assert [part for part, supervised in segments if supervised] == ["hello</s>", "see you</s>"]
    assert "".join(part for part, _ in segments) == "<system>Be brief.</s><user>hi</s><assistant>hello</s><user>bye</s><assistant>see you</s>"
    assert [supervised for _, supervised in segments] == [False, True, False, True]
    plain = sft_text(CHAT, Task("generate"))
    assert plain == [("User: hi\nAssistant:", False), (" hello\n", True), ("User: bye\nAssistant:", False), (" see you\n", True)]


def test_a_template_that_rewrites_the_past_leaves_the_last_answer() -> None:
    assert [part for part, supervised in sft_text(CHAT, GENERATE, template=forgetful) if supervised] == ["see you</s>"]
    with pytest.raises(UsageError, match="not the beginning"):
        sft_text(CHAT, GENERATE, template=backwards)


def test_plain_prompts_and_answers() -> None:
    assert prompt_text(PLAIN, GENERATE) == "Be brief.\n\nTranslate: cat\n\nto French\n"
    assert sft_text(PLAIN, GENERATE, completion=1)[-1] == ("katze", True)
    assert prompt_text(Example("3", "Q: x A: "), Task("generate")) == "Q: x A: "
    assert sft_text(PLAIN, GENERATE, template=chatml)[0][0] == "<user>Be brief.\n\nTranslate: cat\n\nto French</s><assistant>"


def test_tasks_of_labels_read_plain_text() -> None:
    assert prompt_text(Example("1", "text", pair="second", label="a"), Task("score", ("a",), instruction="Judge.")) == "Judge.\n\ntext\n\nsecond"
    assert prompt_text(CHAT, Task("classify")) == "User: hi\nAssistant: hello\nUser: bye"


def test_an_answer_is_needed() -> None:
    with pytest.raises(UsageError, match="without an answer"):
        sft_text(Example("1", "question"), GENERATE)
    with pytest.raises(UsageError, match="without an answer"):
        sft_text(Example("1", (Message("user", "hi"),)), GENERATE, template=chatml)
    whole = Example("1", (Message("user", "hi"), Message("assistant", "yo")))
    assert [part for part, supervised in sft_text(whole, GENERATE, template=chatml) if supervised] == ["yo</s>"]
