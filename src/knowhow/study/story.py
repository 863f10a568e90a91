"""The story of a run, from the rows that its observers kept: what appeared when, and which law says that it should. Pure functions on numbers.

Rows may come from a study (columns `ngrams.…`, `tokens.…`, `circuits.…`, `roles.…`, `spectra.…`, `sparsity.…`, `outliers.…`, `probes.…`, `geometry.…`) or
from the life that ships with a base (observe/life.py); what was not watched is not told.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from knowhow.study.crossings import CONFIRM, Crossing, Row, Series, combined, crossing, highest, lowest, series, steepest

NO_LAW = "no law here says so"
HEAD = re.compile(r"^(?:circuits\.|roles\.)?layers\.(\d+)\.heads\.(\d+)\.(previous|induction|sink)$")
RANK = re.compile(r"^(?:spectra\.)?(?P<site>.+?)(?:\.(?P<part>gradient|update))?\.(?P<metric>stable_rank|effective_rank)$")
HEAD_SCORE = 0.3
"""Mean attention from which a head has a role (for the sink: Gu 2024, sec. 3)."""
RANK_LEFT = 0.9
MORE_SPARSE = 0.1
COPYING = 0.5
HEAVY = 10.0
READABLE = 0.2
COLLAPSED = 0.1
N_GRAMS = {"1": "unigram", "2": "bigram", "3": "trigram", "unigram": "unigram", "five_gram": "5-gram"}
LOSS_NAMES = ("loss", "train_loss")
LAWS = {"bigram": "bigram-floor", "previous": "induction", "induction": "induction", "sink": "sinks"}

Floors = Mapping[str, Mapping[str, float]]
"""Corpus → name of a table → its loss, for rows that do not hold it."""


@dataclass(frozen=True, slots=True)
class Event:
    """`step`: the first look at which it held (None: it did not happen while the run was watched), `before`: the look before it, so that it happened in
    (before, step]; `columns`: the evidence; `law`: the law that says it should, or NO_LAW; `told`: the sentence."""

    what: str
    site: str
    step: int | None
    before: int | None
    value: float
    columns: tuple[str, ...]
    law: str
    told: str
    confirmed: int = CONFIRM


def story(rows: Sequence[Row], floors: Floors | None = None) -> list[Event]:
    """All events, those that happened first in order of time, then what was watched for and did not come."""
    found = [
        *ngram_stages(rows, floors or {}),
        *heads(rows),
        *copying(rows),
        *ranks(rows),
        *sparsity(rows),
        *tails(rows),
        *readable(rows),
        *collapse(rows),
        *drop(rows),
    ]
    return sorted(found, key=lambda event: (event.step is None, event.step or 0))


def passed(
    what: str, crossed: Crossing | None, told: str, *, site: str = "", columns: Sequence[str] = (), law: str = NO_LAW, otherwise: tuple[float, str]
) -> Event:
    """An event from a crossing; `otherwise`: the value and the words when there is none."""
    if crossed is None:
        return Event(what, site, None, None, otherwise[0], tuple(columns), law, otherwise[1], 0)
    weak = "" if crossed.confirmed == CONFIRM else f" ({crossed.confirmed} of the {CONFIRM} looks that would confirm it: the run ended)"
    start = " from the first look on" if crossed.before is None else ""
    return Event(what, site, crossed.step, crossed.before, crossed.value, tuple(columns), law, f"{told}{start}{weak}", crossed.confirmed)


def ngram_stages(rows: Sequence[Row], floors: Floors) -> list[Event]:
    """Corpus by corpus: when the loss passed that of each n-gram table, and when the model stood nearest to it."""
    found = []
    for corpus, column in losses_by_corpus(rows).items():
        looks = series(rows, column)
        known = {key: floor for key in ("1", "2", "3") if (floor := next((value for _, value in series(rows, f"{column}.{key}")), None)) is not None}
        for key, floor in (known or floors.get(corpus, {})).items():
            if key not in N_GRAMS:
                continue
            name = N_GRAMS[key]
            told = f"the loss on {corpus} passes that of the {name} table ({floor:.2f} nats)"
            least = lowest(looks)[1]
            never = f"the loss on {corpus} never passes that of the {name} table ({floor:.2f}; lowest {least:.2f})"
            law = LAWS.get(name, NO_LAW)
            found.append(passed(f"below {name}", crossing(looks, floor, above=False), told, site=corpus, columns=[column], law=law, otherwise=(least, never)))
        found += _nearest(rows, corpus)
    return found


def losses_by_corpus(rows: Sequence[Row]) -> dict[str, str]:
    """Corpus → the column of its held-out loss."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {match.group(1): name for name in names if (match := re.fullmatch(r"ngrams\.(.+)\.loss", name))}
    return found or {name.removeprefix("valid."): name for name in names if name.startswith("valid.")}


def _nearest(rows: Sequence[Row], corpus: str) -> list[Event]:
    """Where the KL from each table is least: inside the run the model stood near it and left it again; at its end it was still coming nearer."""
    found = []
    for key in ("1", "2", "3"):
        column = f"ngrams.{corpus}.kl.{key}"
        looks = series(rows, column)
        if not looks:
            continue
        step, value = lowest(looks)
        at = [each for each, _ in looks].index(step)
        name, law = N_GRAMS[key], LAWS.get(N_GRAMS[key], NO_LAW)
        if at == len(looks) - 1:
            told = f"the model of {corpus} was still coming nearer to the {name} table when the run ended (KL {value:.2f} nats)"
            found.append(Event(f"nearest {name}", corpus, None, None, value, (column,), law, told, 0))
            continue
        told = f"the model of {corpus} is nearest to the {name} table (KL {value:.2f} nats), and leaves it again"
        found.append(Event(f"nearest {name}", corpus, step, looks[at - 1][0] if at else None, value, (column,), law, told, min(CONFIRM, len(looks) - 1 - at)))
    return found


def head_columns(rows: Sequence[Row], role: str) -> dict[str, str]:
    """Site of each head (layers.2.heads.1) → the column of its score for a role."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {f"layers.{match.group(1)}.heads.{match.group(2)}": name for name in names if (match := HEAD.match(name)) and match.group(3) == role}


def heads(rows: Sequence[Row]) -> list[Event]:
    """The first head of each role, and whether previous-token heads came before induction heads."""
    found: dict[str, Event] = {}
    titles = {"previous": "previous-token head", "induction": "induction head", "sink": "attention sink"}
    for role, title in titles.items():
        columns = head_columns(rows, role)
        if not columns:
            continue
        crossed = [(site, crossing(series(rows, column), HEAD_SCORE)) for site, column in columns.items()]
        first = min(((one.step, -one.value, site) for site, one in crossed if one is not None), default=None)
        law = LAWS[role]
        if first is not None:
            site = first[2]
            when = dict(crossed)[site]
            count = sum(one is not None for _, one in crossed)
            told = f"the first {title}, {short(site)} ({count} of {len(columns)} heads by the end)"
            found[role] = passed(title, when, told, site=site, columns=[columns[site]], law=law, otherwise=(0.0, ""))
            continue
        site, top = max(((site, highest(series(rows, column))[1]) for site, column in columns.items() if series(rows, column)), key=lambda each: each[1])
        never = f"no {title}: the highest score is {top:.2f} ({short(site)}), below {HEAD_SCORE}"
        found[role] = passed(title, None, "", site=site, columns=[columns[site]], law=law, otherwise=(top, never))
    return [*found.values(), *_order(found)]


def _order(found: Mapping[str, Event]) -> list[Event]:
    previous, induction = found.get("previous"), found.get("induction")
    if previous is None or induction is None or induction.step is None:
        return []
    columns = (*previous.columns, *induction.columns)
    if previous.step is None:
        verdict, told = 0.0, "an induction head came without any previous-token head: against the order that the law states"
    elif previous.step < induction.step:
        verdict, told = 1.0, "previous-token heads came first, then induction heads: the order that the law states"
    elif previous.step == induction.step:
        verdict, told = 0.5, "previous-token and induction heads came between the same two looks: their order cannot be told"
    else:
        verdict, told = 0.0, "induction heads came before previous-token heads: against the order that the law states"
    return [Event("order of heads", "", induction.step, induction.before, verdict, columns, "induction", told, induction.confirmed)]


def copying(rows: Sequence[Row]) -> list[Event]:
    """When pairs that the context has shown before became cheaper to predict than others, beyond what they were at the first look. Common pairs are among
    them, so this is no proof of an induction head: no law is named."""
    names = ["tokens.loss.fresh", "tokens.loss.copied"]
    looks = combined(rows, names, lambda values: values[0] - values[1])
    if not looks:
        return []
    gains = [(step, value - looks[0][1]) for step, value in looks]
    told = f"pairs that the context has shown before are {COPYING} nats cheaper, against fresh ones, than at the start"
    top = highest(gains)[1]
    return [passed("repeated pairs", crossing(gains, COPYING), told, columns=names, otherwise=(top, f"repeated pairs gain at most {top:.2f} nats"))]


def rank_columns(rows: Sequence[Row], metric: str, part: str | None = None) -> list[str]:
    """Columns of a rank of all matrices (`part` None), of their gradients or of their updates."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if (match := RANK.match(name)) and match.group("metric") == metric and match.group("part") == part]


def relative(rows: Sequence[Row], columns: Sequence[str]) -> list[tuple[int, float]]:
    """Median over columns of the value against that of the first look."""
    first = {name: value for name in columns if (looks := series(rows, name)) and (value := looks[0][1]) > 0}
    names = list(first)
    return combined(rows, names, lambda values: statistics.median(value / first[name] for name, value in zip(names, values, strict=True)))


def ranks(rows: Sequence[Row]) -> list[Event]:
    """When the matrices lost a tenth of their rank, in the middle of them."""
    found = []
    for metric, title in (("stable_rank", "stable rank"), ("effective_rank", "effective rank")):
        columns = rank_columns(rows, metric)
        looks = relative(rows, columns)
        if looks:
            least = lowest(looks)[1]
            told = f"the {title} of the weights (median of {len(columns)} matrices) is a tenth below its start"
            never = f"the {title} of the weights (median of {len(columns)} matrices) stays above {RANK_LEFT:.0%} of its start (lowest {least:.0%})"
            crossed = crossing(looks, RANK_LEFT, above=False)
            found.append(passed(f"lower {title}", crossed, told, columns=columns[:6], law="nuclear-norm", otherwise=(least, never)))
    return found


def sparsity(rows: Sequence[Row]) -> list[Event]:
    """When the share of near-zero activations, over all layers, had risen by a tenth."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if re.fullmatch(r"sparsity\.layers\.\d+\.small", name)]
    looks = combined(rows, names, statistics.fmean)
    if not looks:
        return []
    start, top = looks[0][1], highest(looks)[1]
    told = f"near-zero MLP activations are {MORE_SPARSE:.0%} more of all than at the start ({start:.0%})"
    never = f"MLP activations stay about as sparse as they were ({start:.0%} near zero at the start, at most {top:.0%})"
    return [passed("sparser activations", crossing(looks, start + MORE_SPARSE), told, columns=names, otherwise=(top, never))]


def tails(rows: Sequence[Row]) -> list[Event]:
    """When the residual stream of some layer got heavy tails."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if re.fullmatch(r"outliers\.layers\.\d+\.kurtosis", name)]
    looks = combined(rows, names, max)
    if not looks:
        return []
    top = highest(looks)[1]
    told, never = f"the residual stream of a layer has kurtosis above {HEAVY:g}", f"no outliers: the kurtosis of the residual stream is at most {top:.1f}"
    return [passed("outliers", crossing(looks, HEAVY), told, columns=names, otherwise=(top, never))]


def readable(rows: Sequence[Row]) -> list[Event]:
    """When a probe first read the label from some layer better than its control with shuffled labels."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if re.fullmatch(r"probes\.layers\.\d+\.score", name)]
    gaps = {name: combined(rows, [name, name.replace("score", "shuffled")], lambda pair: pair[0] - pair[1]) for name in names}
    crossed = {name: one for name, looks in gaps.items() if (one := crossing(looks, READABLE)) is not None}
    if not any(gaps.values()):
        return []
    if not crossed:
        top = max(highest(looks)[1] for looks in gaps.values() if looks)
        return [passed("label readable", None, "", columns=names, otherwise=(top, f"no layer shows the label to a linear probe (best gain {top:.2f})"))]
    first = min(crossed, key=lambda name: (crossed[name].step, -crossed[name].value))
    told = f"a linear probe reads the label from layer {first.split('.')[2]} by {READABLE} better than its control"
    return [passed("label readable", crossed[first], told, site=first.rsplit(".", 1)[0].removeprefix("probes."), columns=[first], otherwise=(0.0, ""))]


def collapse(rows: Sequence[Row]) -> list[Event]:
    """When the spread inside classes, in units of that between them, had fallen to a tenth."""
    looks = series(rows, "geometry.nc1")
    if not looks:
        return []
    start, least = looks[0][1], lowest(looks)[1]
    told = f"the features of a class lie together: NC1 is a tenth of its start ({start:.3g})"
    never = f"no collapse of class means: NC1 goes from {start:.3g} to {least:.3g} at the least"
    columns = ["geometry.nc1"]
    return [
        passed("class means collapse", crossing(looks, COLLAPSED * start, above=False), told, columns=columns, law="neural-collapse", otherwise=(least, never))
    ]


def drop(rows: Sequence[Row]) -> list[Event]:
    """Where the training loss fell most per e-fold of steps."""
    column, looks = training_loss(rows)
    change = steepest(looks, fall=True)
    if change is None:
        return []
    told = f"the training loss falls most steeply, by {-change.change:.2f}"
    return [Event("steepest drop", "", change.step, change.before, -change.change, (column,), NO_LAW, told)]


def training_loss(rows: Sequence[Row]) -> tuple[str, Series]:
    """The column of the training loss and its looks."""
    return next(((name, looks) for name in LOSS_NAMES if (looks := series(rows, name))), ("loss", []))


def short(site: str) -> str:
    """layers.2.heads.1 → L2H1."""
    return re.sub(r"layers\.(\d+)\.heads\.(\d+)", r"L\1H\2", site)
