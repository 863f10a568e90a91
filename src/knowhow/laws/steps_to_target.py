"""Pilot: the steps until half of the loss of knowing nothing is gone, from twenty steps that were tried and thrown away.

**Statement** Knowing nothing costs what the untrained model's answer costs, or the best answer that is the same for every row where that is less. If a
pilot of 20 steps at the run's rate took away a share r of it, half of it is gone after about 20 · ½/r steps; if r is below .03, not within the run.

**Derivation** None from first principles: how fast a task is learnt cannot be read off the base (docs/log.md). A pilot is a measurement; over so few
steps the loss falls in proportion to them, and the schedule's warm-up and decay roughly undo each other.

**Assumptions** The pilot has the run's rate, rows and objective; its batch is not much smaller than the run's.

**Where it fails** Tasks that are learnt all at once after a plateau: the pilot sees the plateau.

**Source** A measurement of this project, labelled `pilot` wherever it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from knowhow.laws.law import Law, by_site, fact, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "steps-to-target"
QUANTITY = "steps until half of the loss of knowing nothing is gone (pilot)"
STEPS, TARGET, LEAST = 20, 0.5, 0.03
FACTOR = 3.0
NEVER = 1e6
SMOOTH = 5
"""Rows of the trace whose losses are averaged."""


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    lr, start = fact(diagnosis, "lr"), by_site(diagnosis, "pilot.start")
    site = f"{lr:g}" if lr else ""
    end = by_site(diagnosis, f"pilot.{STEPS}").get(site)
    if end is None or not start.get(site):
        return ()
    gone = 1 - end / start[site]
    value = STEPS * TARGET / max(gone, LEAST / FACTOR)
    return [predicted(NAME, QUANTITY, value, value / FACTOR, NEVER if gone < LEAST else value * FACTOR, diagnosis)]


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """From the loss of the run's own steps (`loss`) and that of knowing nothing (`pilot.start`)."""
    losses = [(int(row["step"]), row["loss"]) for row in trace.rows if "loss" in row and math.isfinite(row["loss"])]
    starts = [row["pilot.start"] for row in trace.rows if "pilot.start" in row]
    found = []
    for one in (p for p in predictions if p.law == NAME):
        if not starts or len(losses) < SMOOTH:
            found.append(not_applicable(one, "the run's losses were not kept"))
            continue
        means = [(losses[at][0], sum(loss for _, loss in losses[at - SMOOTH + 1 : at + 1]) / SMOOTH) for at in range(SMOOTH - 1, len(losses))]
        reached = next((step for step, mean in means if mean <= TARGET * starts[-1]), None)
        last = losses[-1][0]
        if reached is not None:
            found.append(Scored(one, float(reached), reached / one.value, "confirmed" if one.low <= reached <= one.high else "violated"))
        elif one.low > last or one.high == NEVER:
            found.append(Scored(one, None, None, "confirmed", f"not reached in {last} steps, as foreseen"))
        elif one.high <= last:
            found.append(Scored(one, None, None, "violated", f"not reached in {last} steps"))
        else:
            found.append(not_applicable(one, f"not reached in {last} steps; the interval goes on behind them"))
    return found


LAW = Law(NAME, __doc__, "use", "within a factor of 3", predict, score, ())
