"""A recipe that leaves rate and batch to the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import built, recipe

from knowhow import plan


@pytest.fixture(scope="module")
def run(bases, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    return built(recipe(folder, bases("llama"), lr="auto", batch_tokens="auto"), folder).run.folder


def test_the_rate_is_the_best_pilot_s_and_is_what_was_trained_at(run: Path) -> None:
    pilots = {site: value for site, metric, value, *_ in json.loads((run / "plan/pilot.json").read_text()) if metric == plan.PILOT}
    assert len(pilots) >= 2
    chosen = {choice["choice"]: choice for choice in json.loads((run / "plan/plan.json").read_text())["choices"]}
    trained = json.loads((run / "adapt/choices.json").read_text())[-1]
    assert chosen["lr"]["value"] == trained["lr"] <= float(min(pilots, key=lambda site: pilots[site]))


def test_the_batch_is_about_the_noise_scale(run: Path) -> None:
    chosen = {choice["choice"]: choice for choice in json.loads((run / "plan/plan.json").read_text())["choices"]}
    assert chosen["batch_tokens"]["value"] == chosen["batch_tokens"]["alternatives"]["planned"]
    assert chosen["batch_tokens"]["value"] in {2**k for k in range(9, 16)}
