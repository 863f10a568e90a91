"""What a layer is worth to the specialist is foreseen on the base.

**Statement** Rank the layers of the untouched base by how far its answers move when each is left out, on rows of the task, read through a head that was
fitted on frozen features: the specialist's layers, left out one at a time, come in the same order.

**Derivation** A residual network is a sum of layers' contributions, f(x) = h(x₀ + Σ f_l). Leaving layer l out changes the logits by J_l f_l to first
order, J_l the map from its place to the head. A short fine-tune changes f_l and J_l by O(η K), while their sizes differ between layers by factors: what
pretraining made of a layer (the first one turns tokens into features; the last one writes what the head reads) outlives the fine-tune, so the order does.

**Assumptions** Six layers or more; the same rows' distribution before and after; the specialist was trained from this base with all its layers.

**Where it fails** Where training makes a new circuit in a layer that did little: its cost rises out of order. Costs themselves are larger in the
specialist, which reads its answer off fewer paths, or smaller, where training moved the work elsewhere: only the order is claimed, and each layer's cost
has a wide interval. The cost is a divergence of answers, not a rise of the loss: an overconfident specialist's loss can fall when a layer goes, and then
the order of losses is noise (docs/log.md). Small specialists rest on their first layer, and the order of the rest is of small numbers.

**Source** Layer removal: Men et al. 2024 (arXiv 2403.03853), Gromov et al. 2024 (arXiv 2403.17887). Answers where in a network separated parts do the
work, and which a builder may take away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import spearmanr

from knowhow.laws.law import Law, by_site, not_applicable, predicted
from knowhow.types import Diagnosis, Prediction, Scored, Trace

NAME = "layer-skip"
ORDER = "rank correlation of the layers' costs before and after training"
COST = "nats per row by which the specialist's answers move when this layer is left out"
LEAST_LAYERS = 6
LEAST_CORRELATION = 0.6
SCALE, FACTOR = 0.9, 8.0
"""Geometric mean of a layer's divergence after training by that before, and the factor that holds 90% of them: 30 layers of four builds."""


def predict(diagnosis: Diagnosis) -> Sequence[Prediction]:
    costs = {site: value for site, value in by_site(diagnosis, "skip.shift").items() if site.count(".") == 1}
    if not costs:
        return ()
    found = [predicted(NAME, ORDER, 0.85, LEAST_CORRELATION, 1.0, diagnosis)]
    for site, cost in costs.items():
        value = max(cost, 1e-3) * SCALE
        found.append(predicted(NAME, COST, value, value / FACTOR, value * FACTOR, diagnosis, site))
    return found


def score(predictions: Sequence[Prediction], trace: Trace) -> Sequence[Scored]:
    """From columns `shift.measured:layers.3` of the last row that has them."""
    own = [p for p in predictions if p.law == NAME]
    measured = _measured(trace)
    costs = {p.site: p.value for p in own if p.quantity == COST}
    both = [site for site in costs if site in measured]
    found = []
    for one in own:
        if not both:
            found.append(not_applicable(one, "the specialist's layers were not left out one by one"))
        elif one.quantity == ORDER:
            found.append(_order(one, [costs[site] for site in both], [measured[site] for site in both]))
        elif one.site in measured:
            value = measured[one.site]
            found.append(Scored(one, value, value - one.value, "confirmed" if one.low <= max(value, 1e-3) <= one.high else "violated"))
        else:
            found.append(not_applicable(one, "this layer was not left out"))
    return found


def _order(one: Prediction, before: Sequence[float], after: Sequence[float]) -> Scored:
    if len(before) < LEAST_LAYERS:
        return not_applicable(one, f"{len(before)} layers; an order of fewer than {LEAST_LAYERS} says nothing")
    if len(set(before)) < 2 or len(set(after)) < 2:
        return not_applicable(one, "every layer costs the same, so there is no order")
    value = float(spearmanr(before, after).statistic)
    return Scored(one, value, value - one.value, "confirmed" if value >= one.low else "violated", f"{len(before)} layers")


def _measured(trace: Trace) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for row in trace.rows:
        found |= {name.split(":", 1)[1]: value for name, value in row.items() if name.startswith("shift.measured:") and value == value}
    return found


LAW = Law(NAME, __doc__, "use", "Spearman ≥ .6 in a build of ≥ 6 layers, ≥ .8 pooled over builds", predict, score, ())
