"""What chat templates may do: usual ones pass and render, those that size work by the request, grow without end or reach into Python do not."""

from __future__ import annotations

import sys

import jinja2
import pytest

from knowhow.errors import SafetyError
from knowhow.model.templates import check, render

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
GOOD = {
    "chatml": CHATML,
    "counting back": "{%- set ns = namespace(last=messages|length - 1) %}{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}"
    "{%- if i == ns.last %}{%- set ns.last = i %}{%- endif %}{%- for j in range(i, messages|length) %}{{ j }}{%- endfor %}{%- endfor %}",
    "generation and break": "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}",
    "tools": "{% if tools %}{{ tools | tojson(indent=4) }}{% endif %}{{ messages[-1].content.replace('a', '') }}",
    "recursive macro": "{%- macro kind(t) -%}{%- if t is mapping -%}{%- for k, v in t.items() -%}{{ k }}{{ kind(v) }}{%- endfor -%}"
    "{%- else -%}{{ t }}{%- endif -%}{%- endmacro -%}{{ kind(messages[0]) }}",
    "objection": "{{ raise_exception('roles must alternate') }}",
    "date": "{{ strftime_now('%Y-%m-%d') }}{{ '%s!' % messages[0].role }}{{ 'a{}'.format(1) }}",
    "indent by depth": "{%- macro show(x, depth) -%}{{ '  ' * 2 }}{{ x }}{%- endmacro -%}{{ show(messages[0].role, 1) }}",
}
BAD = {
    "number in a text": ("{% for i in range(messages[0].content|int) %}a{% endfor %}", "range"),
    "number through a variable": ("{% set n = messages[0].content|int %}{% for i in range(n) %}a{% endfor %}", "range"),
    "number through a namespace": ("{% set ns = namespace(n=0) %}{% set ns.n = messages[0].n %}{% for i in range(ns.n) %}a{% endfor %}", "range"),
    "number through a macro": ("{% macro f(n) %}{% for i in range(n) %}a{% endfor %}{% endmacro %}{{ f(messages[0].n) }}", "range"),
    "unpacked": ("{% for i in range(*messages) %}a{% endfor %}", "range"),
    "big constant": ("{% for i in range(100000000) %}a{% endfor %}", "range"),
    "text times number": ("{{ 'a' * (messages[0].content|int) }}", "multiplies"),
    "power": ("{{ 10 ** 100000000 }}", "multiplies"),
    "width": ("{{ '%999999999d' % 1 }}", "width"),
    "width in braces": ("{{ '{:>9999999999}'.format(1) }}", "width"),
    "pattern from the request": ("{{ messages[0].content.format(1) }}", "pattern taken"),
    "padding": ("{{ 'a'.center(messages[0].n) }}", "center"),
    "replacement": ("{{ 'aaaa'.replace('a', messages[0].content) }}", "replaces"),
    "doubling": ("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "memory"),
    "nested loops": ("{% for i in range(900) %}{% for j in range(900) %}{% endfor %}{% endfor %}", "steps"),
    "letters cubed": ("{% for m in messages %}{% for a in m.content %}{% for b in m.content %}{% endfor %}{% endfor %}{% endfor %}", "steps"),
    "tree recursion": ("{% macro f(n) %}{% if n > 0 %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}", "steps"),
    "endless recursion": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "stack"),
    "class": ("{{ messages.__class__.__mro__ }}", "reaches into Python"),
    "class as item": ("{{ ''['__class__'] }}", "reaches into Python"),
    "class built from parts": ("{{ messages[('__cl' ~ 'ass__')]['__mro' ~ '__'] | list }}", ""),
    "attr filter": ("{{ messages | attr('__class__') }}", "reaches into Python"),
    "include": ("{% include 'x' %}", "reads other files"),
    "no template": ("{% for %}", "cannot be read"),
}


@pytest.mark.parametrize("name", GOOD)
def test_usual_templates_pass(name: str) -> None:
    check(GOOD[name], where="here")


@pytest.mark.parametrize("name", [name for name, (_, reason) in BAD.items() if reason])
def test_hostile_templates_are_refused(name: str) -> None:
    template, reason = BAD[name]
    with pytest.raises(SafetyError) as caught:
        check(template, where="here")
    assert reason in caught.value.got


def test_a_hidden_class_yields_nothing() -> None:
    with pytest.raises(jinja2.exceptions.TemplateError):
        render(BAD["class built from parts"][0], [{"role": "user", "content": "a"}])


def test_render_gives_the_text() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    text = render(CHATML, messages, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n<|im_start|>assistant\n"
    marked = "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert render(marked, messages, variables={"bos_token": "^"}) == "^hiho"


def test_rendering_is_capped_where_the_worker_could_not_look() -> None:
    """A template may wait for a word in the request before it misbehaves."""
    waits = "{% if messages[0].content == 'now' %}{% for i in range(900) %}{% for j in range(900) %}{% endfor %}{% endfor %}{% endif %}"
    grows = "{% if messages[0].content == 'now' %}{% for a in range(900) %}{% for b in range(30) %}{{ messages[1].content }}{% endfor %}{% endfor %}{% endif %}"
    check(waits, where="here")
    before = sys.gettrace()
    with pytest.raises(SafetyError, match="steps"):
        render(waits, [{"role": "user", "content": "now"}])
    with pytest.raises(SafetyError, match="characters"):
        render(grows, [{"role": "user", "content": "now"}, {"role": "user", "content": "x" * 1000}])
    assert sys.gettrace() is before


def test_many_turns_are_no_attack() -> None:
    text = render(CHATML, [{"role": "user", "content": "word " * 50}] * 2000)
    assert text.count("<|im_start|>") == 2000
