"""What the ledger's law says of traces: confirmed, violated with a cause, or not applicable with one; never confirmed on nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from knowhow.laws.law import facts
from knowhow.laws.noether import DISCRETE, FLOW, LAW, SYMMETRY, VELOCITY, predict, score
from knowhow.types import Diagnosis, Scored, Trace

KNOWN = {"lr": 0.003, "weight_decay": 0.05, "momentum": 0.0, "adam": 0.0, "charges.vo": 4.0, "charges.qk": 0.0, "charges.excluded": 1.0}
ROW = {
    "charges.vo.residual": 1e-6, "charges.vo.stored": 1e-4, "charges.vo.symmetry": 1e-6, "charges.vo.flow": 0.01, "charges.vo.sites": 4.0,
    "charges.vo.undecayed": 0.5, "charges.decay": 0.05, "charges.declared_decay": 0.05, "charges.excluded.tied": 1.0,
}  # fmt: skip


def trace(row: Mapping[str, float], steps: int = 4) -> Trace:
    return Trace(tuple({"step": step, **row} for step in range(1, steps + 1)))


def told(**changes: float) -> Diagnosis:
    return facts({**KNOWN, **{name.replace("_charge", "charges."): value for name, value in changes.items()}})


def said(of: Trace, quantity: str = DISCRETE, **changes: float) -> Scored:
    return next(one for one in score(predict(told(**changes)), of) if one.prediction.quantity == quantity)


def without(*names: str) -> dict[str, float]:
    return {name: value for name, value in ROW.items() if name not in names}


def test_predictions_are_made_from_facts_and_only_of_what_was_derived() -> None:
    assert [(one.quantity, one.site) for one in predict(told())] == [(DISCRETE, "vo"), (SYMMETRY, "vo"), (FLOW, "vo")]
    assert FLOW not in {one.quantity for one in predict(told(lr=0.004))}
    assert VELOCITY in {one.quantity for one in predict(told(momentum=0.9))}
    assert {one.quantity for one in predict(told(adam=1.0, momentum=0.9))} == {DISCRETE, SYMMETRY}
    assert predict(facts({"lr": 0.1})) == ()
    assert predict(facts({"charges.vo": 4.0})) == ()
    assert predict(Diagnosis((), "")) == ()


def test_a_kept_ledger_is_confirmed_with_what_rounding_did() -> None:
    found = score(predict(told()), trace(ROW))
    assert {one.verdict for one in found} == {"confirmed"}
    assert "0.0001 of the weights as rounded" in found[0].because
    assert "1 tied" in found[0].because


@pytest.mark.parametrize("row", [{}, {"loss": 1.0}, without("charges.vo.residual"), without("charges.vo.symmetry"), {**ROW, "charges.vo.residual": math.nan}])
def test_nothing_and_no_numbers_confirm_nothing(row: Mapping[str, float]) -> None:
    assert said(trace(row)).verdict == "not applicable"
    assert said(Trace(())).verdict == "not applicable"
    assert said(trace(ROW, 2)).verdict == "not applicable"


def test_one_number_that_is_none_spoils_a_column() -> None:
    rows = [*trace(ROW).rows, {"step": 9, **ROW, "charges.vo.residual": math.inf}]
    assert said(Trace(tuple(rows))).verdict == "not applicable"


@pytest.mark.parametrize("cause", ["adam", "momentum", "muon", "decay", "rates", "frozen", "rounding"])
def test_a_known_cause_is_named_and_not_judged(cause: str) -> None:
    found = said(trace({**without("charges.vo.residual", "charges.vo.stored"), f"charges.vo.broken.{cause}": 0.4}))
    assert found.verdict == "not applicable"
    assert found.measured == 0.4
    assert cause in found.because.lower() or {"decay": "decays", "rates": "rates"}.get(cause, "") in found.because
    assert said(trace({**ROW, f"charges.vo.broken.{cause}": 0.4}), SYMMETRY).verdict == "confirmed"


def test_an_unknown_cause_is_a_violation_with_a_guess() -> None:
    read = said(trace({**ROW, "charges.vo.residual": 0.3, "charges.vo.symmetry": 0.3}))
    assert read.verdict == "violated"
    assert "tied or read elsewhere" in read.because
    decay = said(trace({**ROW, "charges.vo.residual": 0.3, "charges.decay": 0.1}))
    assert decay.verdict == "violated"
    assert "show 0.1, the optimizer declares 0.05" in decay.because
    assert "did not move by rate times gradient" in said(trace({**ROW, "charges.vo.residual": 0.3})).because


def test_the_flow_limit_is_read_at_the_last_look() -> None:
    rows = [{"step": step, **ROW, "charges.vo.flow": 0.01 * step} for step in range(1, 8)]
    found = said(Trace(tuple(rows)), FLOW)
    assert found.verdict == "violated"
    assert found.measured == pytest.approx(0.07)


def test_controls_fail_where_wrong_charges_move_and_only_there() -> None:
    controls = {one.name: one for one in LAW.controls}
    full = controls["full query-key matrix"].score
    diagnosis = told(_chargeqk=4.0)
    row = {**ROW, "charges.qk.residual": 1e-6, "charges.wrong.qk_full.residual": 0.4}
    assert full is not None
    assert [one.verdict for one in full(predict(diagnosis), trace(row))] == ["violated"]
    assert [one.verdict for one in full(predict(diagnosis), trace({**row, "charges.wrong.qk_full.residual": 0.05}))] == ["confirmed"]
    assert [one.verdict for one in full(predict(diagnosis), trace(ROW))] == ["not applicable"]
    forgotten, plain = controls["decay forgotten"].score, controls["AdamW by the law of plain descent"].score
    assert forgotten is not None
    assert plain is not None
    assert [one.verdict for one in forgotten(predict(told()), trace(ROW))] == ["violated"]
    assert not forgotten(predict(told()), trace({**ROW, "charges.declared_decay": 0.0}))
    assert [one.verdict for one in plain(predict(told()), trace({**ROW, "charges.vo.broken.adam": 0.5}))] == ["violated"]
    assert [one.verdict for one in plain(predict(told()), trace(ROW))] == ["not applicable"]


def test_the_page_is_whole() -> None:
    assert {"Statement", "Derivation", "Assumptions", "Where it fails", "Source"} <= set(LAW.sections)
