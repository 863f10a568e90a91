"""The digest of what a law rests on: formulas, systems and observers are in it, words are not."""

from __future__ import annotations

import ast
from dataclasses import replace

from knowhow import laws
from knowhow.experiments import source
from knowhow.laws.law import Experiment


def names(law_name: str) -> set[str]:
    return {f"{module.removeprefix('knowhow.')}:{name}" for module, name in source.rests_on(laws.law(law_name))}


def test_it_follows_the_law_its_systems_and_its_observers() -> None:
    found = names("one-step")
    assert {"laws.one_step:score", "laws.one_step:first_order", "laws.one_step:GATE", "laws.one_step:TOLERANCE"} <= found
    assert {"experiments.language:markov_decoder", "experiments.language:walks", "experiments.system:Drawn"} <= found
    assert {"observe.one_step:OneStep", "observe.looking:unnoticed", "maths.hvp:differenced"} <= found
    assert not any(name.startswith(("loop.", "laws.law:", "experiments.run:", "data.")) for name in found)
    assert "experiments.system:MAKERS" not in found


def test_systems_of_controls_count() -> None:
    law = laws.law("one-step")
    moved = replace(law, controls=(replace(law.controls[0], experiment=Experiment("clusters", 3, {"geometry": {}})),))
    found = {f"{module}:{name}" for module, name in source.rests_on(moved)}
    assert {"knowhow.experiments.clusters:clusters", "knowhow.observe.geometry:Geometry"} <= found
    assert source.digest_of(moved) != source.digest_of(law)


def test_words_change_nothing_and_numbers_do() -> None:
    def told(code: str) -> list[str]:
        return [ast.dump(source._bare(node)) for node in ast.parse(code).body]

    plain = told("def f(x):\n    return x + 1\n\nclass A:\n    b = 1\n")
    assert told('def f(x):\n    """Said."""\n    return x + 1  # why\n\nclass A:\n    """Said."""\n\n    b = 1\n') == plain
    assert told("def f(x):\n    return x + 2\n\nclass A:\n    b = 1\n") != plain


def test_laws_differ() -> None:
    assert len({source.digest_of(laws.law(name)) for name in ("one-step", "mode-times", "sinks")}) == 3
    assert source.digest_of(laws.law("one-step")) == source.digest_of(laws.law("one-step"))
