"""Heads that have nothing to say rest on the first token, because a softmax must spend its weight somewhere.

**Statement** A head that is wanted at some queries only looks at the first token at all others (a sink), when its weights are normalised and rows have a
token that begins them all: its mean attention to the first token is the share of queries at which it is idle, within 0.05, and known before training. With
sigmoids in place of the softmax the same task is learnt and no sink comes (at most 0.1). This is one of the ways in which sparsity appears: the head is
active on few queries, and the architecture's constraint, not the task, decides where its idle weight lies.

**Derivation** The head writes o_i = Σ_j a_ij v_j. At the few queries that need it, the values of the tokens must carry what is copied, v_j = e_j + …, of a
size c set by the loss there. At the other queries anything written is noise: with a rest of the model that already gives the right logits, L(o) − L(0) = ½
oᵀF o to second order, F the Fisher matrix of the output (the first-order term vanishes at the optimum of the rest), so the wanted output is o = 0.
Normalised, Σ_j a_ij = 1: o_i lies in the convex hull of the values. With n values of independent directions and size c an even spread leaves |o|² = c²/n and
any focus on one token more; zero is out of reach unless some key has v ≈ 0. The beginning is that key: nothing is ever copied from it, so its value is free,
and every query sees it. Let α be its weight and the rest spread evenly, F ∝ 1: |o|² = (1−α)² c²/n + α² |v_0|². Through the softmax −∂L/∂s_0 = α(1−α) [(1−α)
c²/n − α|v_0|²], positive while v_0 is small: the score s_0 rises and α goes to 1; and −∂L/∂v_0 = −α² v_0 shrinks v_0 the faster the larger α is. Each feeds
the other (Guo 2024: mutual reinforcement). So α = 1 at idle queries, 0 at the others, and the mean is the idle share. Unnormalised, a_ij = σ(s_ij − b) can
all go to zero at once: −∂L/∂s_ij = −σ' v_j·o lowers every score whose value adds to o, the first token's with them, and nothing ties the sum to 1.

**Assumptions** The head has learnt its task (gate: loss at the triggers at most a third of the loss elsewhere); a token begins every row and is never copied;
nothing that an idle query sees helps to foretell its next token (here: the head sees earlier tokens only, and the chain has one token of memory).

**Where it fails** A head that also sees the query's own token has a second place to rest: writing what the token itself implies is no noise. Each token then
goes one way or the other, and the first token kept .23 to .56 at five seeds (Gu's bar of .3 passed at three of them), the query itself up to .65. Without any
trigger the values shrink and the pull goes with them: a sink came still (.66), below the idle share of 1. Without a token that begins the rows no place is
free (a control). Where the even spread is quiet, with long rows, the pull is weak. Gates, sink tokens or a clipped softmax take the sink's place.

**Source** Gu et al. 2024 (arXiv 2410.10781), sinks and sigmoid attention; Guo et al. 2024 (arXiv 2410.13835), the Bigram-Backcopy task and mutual
reinforcement; Bondarenko 2023 (arXiv 2306.12929).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from knowhow.laws.law import Control, Experiment, Law, compared, fact, not_applicable, predicted, values
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "sinks"
QUANTITY = "mean attention to the first token at the end, of the head that looks at it most"
NEAR, NONE = 0.05, 0.1
LEARNT = 1 / 3
LAST = 50


def _sink(diagnosis: Diagnosis) -> Sequence[Prediction]:
    idle = fact(diagnosis, "idle")
    return () if idle is None else (predicted(NAME, QUANTITY, idle, idle - NEAR, min(1.0, idle + NEAR), diagnosis),)


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """Nothing unless the run is known to need a head at some tokens, in rows that begin alike: whether its weights are normalised says if a sink comes."""
    idle, softmax, begun = (fact(diagnosis, name) for name in ("idle", "softmax", "begun"))
    if idle is None or softmax is None or not begun or not NONE < idle < 1:
        return ()
    return _sink(diagnosis) if softmax else (predicted(NAME, QUANTITY, 0.0, 0.0, NONE, diagnosis),)


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    sinks, (at_triggers, elsewhere) = values(trace, "circuits.sink"), _losses(trace)
    found = []
    for prediction in (p for p in predictions if p.law == NAME):
        if not sinks or at_triggers is None:
            found.append(not_applicable(prediction, "nobody looked at attention, or at the loss where a head is needed"))
        elif at_triggers > LEARNT * elsewhere:
            found.append(not_applicable(prediction, f"the head's task was not learnt: {at_triggers:.2f} nats at the triggers, {elsewhere:.2f} elsewhere"))
        else:
            found.append(compared(prediction, sinks[-1], because=f"{at_triggers:.2f} nats at the triggers, {elsewhere:.2f} elsewhere"))
    return found


def _losses(trace: Trace) -> tuple[float | None, float]:
    """Mean loss in nats over the last steps at triggers and at the other tokens; (None, …) where nobody counted or the run has no trigger."""
    rows = [row for row in trace.rows if {"loss", "trigger_loss", "triggers"} <= row.keys()][-LAST:]
    if not rows:
        return None, math.nan
    loss, spent, share = (statistics.fmean(row[name] for row in rows) for name in ("loss", "trigger_loss", "triggers"))
    if not math.isfinite(loss + spent + share) or not 0 < share < 1:
        return None, math.nan
    return spent / share, (loss - spent) / (1 - share)


def whatever_the_weights(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The wrong law: a sink comes whether or not weights are normalised. Asked of the runs in which the law says none comes."""
    return _sink(diagnosis) if fact(diagnosis, "softmax") == 0 else ()


def wherever_rows_begin(diagnosis: Diagnosis) -> Sequence[Prediction]:
    """The wrong law: the first place attracts as a place."""
    return _sink(diagnosis) if fact(diagnosis, "begun") == 0 else ()


def experiment(normalised: bool = True, begun: bool = True) -> Experiment:
    options = {"normalised": normalised, "begun": begun}
    return Experiment("backcopy", 400, {"circuits": {"looks": 10}}, options=options, optimizer={"lr": 1e-2}, schedule="cosine", warmup=0.05)


LAW = Law(
    NAME,
    __doc__,
    "simplicity",
    "softmax: mean attention to the first token within 0.05 of the share of idle queries; sigmoid, task learnt all the same: ≤ 0.1",
    predict,
    score,
    (experiment(), experiment(normalised=False)),
    (
        Control("sigmoid attention as if normalised", "without the sum over keys there must be no sink", predict=whatever_the_weights),
        Control(
            "rows without a beginning", "where no token is free of being copied there must be no sink", experiment(begun=False), predict=wherever_rows_begin
        ),
    ),
)
