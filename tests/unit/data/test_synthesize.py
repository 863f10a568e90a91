"""Synthesis: templates filled, a teacher asked over real HTTP on this machine, and nothing kept that repeats or leaks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from knowhow.data import dedupe, synthesize
from knowhow.data.teacher import Budget, Teacher, rows_of
from knowhow.errors import UsageError
from knowhow.types import Example, Task

SLOTS = {
    "verb": ["cancel", "change", "confirm", "postpone"],
    "thing": ["flight to Lisbon", "hotel in Madrid", "table for seven", "doctor's visit"],
    "day": ["Monday", "Friday"],
}
TEMPLATES = ["please {verb} my {thing}", "I would like you to {verb} the {thing} that I booked for {day}"]
TASK = Task("classify", ("good", "bad"), instruction="Film reviews.")


def test_templates_are_filled_from_their_slots() -> None:
    found = synthesize.from_templates(TEMPLATES, SLOTS, label="travel", rows=20, seed=0)
    assert 10 <= len(found.examples) <= 20
    assert {example.label for example in found.examples} == {"travel"}
    assert all("{" not in example.prompt for example in found.examples)
    assert found.counts["kept"] == len(found.examples)
    assert found.counts["made"] == sum(found.counts[fate] for fate in ("kept", "repeats", "in_train", "in_held_out"))
    assert found == synthesize.from_templates(TEMPLATES, SLOTS, label="travel", rows=20, seed=0)
    assert found.examples != synthesize.from_templates(TEMPLATES, SLOTS, label="travel", rows=20, seed=1).examples


def test_few_combinations_give_each_once() -> None:
    slots = {"n": ["alpha", "beta", "gamma"]}
    found = synthesize.from_templates(["{n}"], slots, label=None, rows=100, seed=0)
    assert sorted(example.prompt for example in found.examples) == slots["n"]
    assert [example.prompt for example in synthesize.from_templates(["{n}, {n}"], {"n": ["x"]}, label=None, rows=5, seed=0).examples] == ["x, x"]


def test_nothing_near_train_held_out_or_each_other_is_kept() -> None:
    train = [Example("t", "please cancel my hotel in Madrid", label="travel")]
    held = [Example("h", "I would like you to confirm the table for seven that I booked for Friday", label="travel")]
    found = synthesize.from_templates(TEMPLATES, SLOTS, label="travel", rows=40, seed=0, train=train, held_out=held)
    texts = [example.prompt for example in (*held, *train, *found.examples)]
    assert len(dedupe.near_pairs(texts)) == 0
    assert found.counts["in_train"] >= 1
    assert found.counts["in_held_out"] >= 1
    free = synthesize.from_templates(TEMPLATES, SLOTS, label="travel", rows=40, seed=0)
    assert len(dedupe.near_pairs([example.prompt for example in free.examples])) == 0
    assert free.counts["in_train"] == free.counts["in_held_out"] == 0


@pytest.mark.parametrize(
    ("templates", "slots", "match"),
    [
        ([], {}, "no template"),
        (["{verb} it"], {"verbs": ["x"]}, r"\{verb\} has no values \(did you mean 'verbs'\?\)"),
        (["{verb} it"], {"verb": []}, "has no values"),
        (["{verb} it"], {"verb": ["x"], "noun": ["y"]}, "no template uses the slots noun"),
    ],
)
def test_wrong_templates_are_named(templates: list[str], slots: dict[str, list[str]], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        synthesize.from_templates(templates, slots, label=None, rows=5, seed=0)


def test_slots_are_no_format_strings() -> None:
    found = synthesize.from_templates(["{a} {b.__class__} {0[x]}"], {"a": ["{b}"]}, label=None, rows=1, seed=0)
    assert found.examples[0].prompt == "{b} {b.__class__} {0[x]}"


@dataclass
class Endpoint:
    """What the local server answers with, and what it was asked."""

    answers: list[Any]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@pytest.fixture
def endpoint() -> Iterator[Callable[[list[Any]], Endpoint]]:
    """A server on loopback: an answer is (status, headers, body), or text that becomes a completion."""
    servers: list[HTTPServer] = []

    def start(answers: list[Any]) -> Endpoint:
        found = Endpoint(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                found.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                found.keys.append(self.headers.get("Authorization"))
                answer = found.answers[min(len(found.asked), len(found.answers)) - 1]
                status, headers, body = answer if isinstance(answer, tuple) else (200, {}, json.dumps({"choices": [{"message": {"content": answer}}]}))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                return None

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        found.url = f"http://127.0.0.1:{server.server_port}/v1"
        return found

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def teacher(endpoint: Endpoint, waits: list[float] | None = None, **budget: Any) -> Teacher:
    return Teacher(endpoint.url, "tiny", "KNOWHOW_TEST_KEY", Budget(**budget), sleep=(waits if waits is not None else []).append)


def answer(*texts: str, **more: str) -> str:
    return json.dumps({"rows": [{"text": text, **more} for text in texts]})


GOOD = ["A joyful ride from start to finish.", "Warm, clever and beautifully shot, I loved it.", "The best thing I have seen this year."]
BAD = ["Dull beyond description, avoid at all cost.", "Two hours of my life that nobody gives back.", "The script reads like a parking ticket."]
TRAIN = [Example("1", "What a wonderful picture this was!", label="good"), Example("2", "Terrible acting, terrible plot, terrible sound.", label="bad")]


def test_a_teacher_is_asked_label_by_label(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWHOW_TEST_KEY", "secret")
    server = endpoint([answer(*GOOD), "Sure!\n```json\n" + answer(*BAD) + "\n```"])
    told: list[int] = []
    found = synthesize.from_teacher(teacher(server), TASK, rows=6, seed=0, train=TRAIN, progress=lambda what, done, total: told.append(done))
    assert [(example.prompt, example.label) for example in found.examples] == [(text, "good") for text in GOOD] + [(text, "bad") for text in BAD]
    assert {example.origin for example in found.examples} == {"teacher"}
    assert len({example.id for example in found.examples}) == 6
    assert told == [3, 6]
    assert server.keys == ["Bearer secret"] * 2
    asked = [request["messages"][1]["content"] for request in server.asked]
    assert "label: good" in asked[0]
    assert TRAIN[0].prompt in asked[0]
    assert TRAIN[1].prompt not in asked[0]
    assert "label: bad" in asked[1]
    assert server.asked[0]["model"] == "tiny"


def test_repeats_leaks_and_nonsense_are_counted_and_dropped(endpoint: Any) -> None:
    held = [Example("h", "A film about nothing, told with great charm by everyone.", label="good")]
    rows = [{"text": GOOD[0]}, {"text": GOOD[0].upper()}, {"text": TRAIN[0].prompt}, {"text": held[0].prompt + " really"}, {"text": 7}, {"text": " "}, {}]
    rows.append({"text": GOOD[1], "label": "bad"})
    server = endpoint([json.dumps({"rows": rows}), "no JSON at all", '{"rows": 3}', "[1, 2"])
    found = synthesize.from_teacher(teacher(server), TASK, rows=5, seed=0, train=TRAIN, held_out=held)
    assert [example.prompt for example in found.examples] == [GOOD[0]]
    assert found.counts == {"made": 4, "kept": 1, "repeats": 1, "in_train": 1, "in_held_out": 1, "invalid": 4 + 3}
    assert len(server.asked) == 4, "it stops when nothing new comes"
    assert all(held[0].prompt not in request["messages"][1]["content"] for request in server.asked), "held-out rows are never shown"


@pytest.mark.parametrize(
    ("task", "row", "good"),
    [
        (Task("generate"), {"text": "q", "completion": "a"}, True),
        (Task("generate"), {"text": "q"}, False),
        (Task("regress"), {"text": "q", "label": 2.5}, True),
        (Task("regress"), {"text": "q", "label": "high"}, False),
        (Task("score", ("x",)), {"text": "q", "pair": "p"}, True),
        (Task("score", ("x",)), {"text": "q"}, False),
        (Task("classify", ("x",), many=True), {"text": "q"}, True),
    ],
)
def test_answers_are_checked_against_the_task(endpoint: Any, task: Task, row: dict[str, Any], good: bool) -> None:
    found = synthesize.from_teacher(teacher(endpoint([json.dumps({"rows": [row]})])), task, rows=1, seed=0, train=[])
    assert len(found.examples) == good
    if good and task.many:
        assert found.examples[0].label == ("x",)


def test_busy_servers_are_asked_again(endpoint: Any) -> None:
    waits: list[float] = []
    server = endpoint([(429, {"Retry-After": "7"}, ""), (503, {}, ""), answer(*GOOD)])
    found = synthesize.from_teacher(teacher(server, waits), TASK, rows=3, seed=0, train=TRAIN)
    assert len(found.examples) == 3
    assert waits[0] == 7.0
    assert 0 <= waits[1] <= 2.0


def test_the_budget_ends_it(endpoint: Any) -> None:
    server = endpoint([answer(GOOD[0]), answer(BAD[0]), (500, {}, "")])
    found = synthesize.from_teacher(teacher(server, requests=2), TASK, rows=50, seed=0, train=TRAIN)
    assert len(found.examples) == len(server.asked) == 2
    kept = synthesize.from_teacher(teacher(endpoint(server.answers), tries=2), TASK, rows=50, seed=0, train=TRAIN)
    assert len(kept.examples) == 2, "what was made before a failure is kept"


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        ((401, {}, "no such key"), "HTTP 401.*no such key"),
        ((404, {}, "no such model"), "HTTP 404"),
        ((302, {"Location": "http://127.0.0.1:9/steal"}, ""), "HTTP 302"),
        ((500, {}, ""), "no answer after 2 tries: HTTP 500"),
        ((200, {}, "<html>"), "another form"),
        ((200, {}, '{"choices": []}'), "another form"),
        ((200, {}, "x" * 5_000_000), "more than 4 MB"),
    ],
)
def test_refusals_are_user_errors(endpoint: Any, reply: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        synthesize.from_teacher(teacher(endpoint([reply]), tries=2), TASK, rows=5, seed=0, train=TRAIN)
    assert caught.value.fix


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no answer after 2 tries"):
        teacher(Endpoint([], "http://127.0.0.1:9/v1"), tries=2).reply([])


@pytest.mark.parametrize("url", ["ftp://host/v1", "host:8000/v1", "http://example.org/v1", "file:///etc/passwd"])
def test_a_key_never_travels_in_the_clear(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWHOW_TEST_KEY", "secret")
    with pytest.raises(UsageError, match=r"address|in the clear") as caught:
        teacher(Endpoint([], url)).reply([])
    assert "secret" not in str(caught.value)


def test_rows_of_tolerates_wrapping_and_refuses_the_rest() -> None:
    assert rows_of('Here: {"rows": [{"text": "a"}, "b", {"text": "\\ud800"}]} done') == [{"text": "a"}]
    assert rows_of('[{"text": "a"}]') == [{"text": "a"}]
    assert [rows_of(text) for text in ("", "no", "{", '{"rows": {}}', "[" * 10_000)] == [None] * 5
