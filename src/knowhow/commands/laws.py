"""`knowhow laws list|show|check`: what the laws of learning say, what came of judging them, and one of them put to the test."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knowhow import laws
from knowhow.commands.output import Output, table
from knowhow.errors import UsageError
from knowhow.laws.judged import FRESH, committed, verdict
from knowhow.laws.law import QUESTIONS, Judgement, Law
from knowhow.laws.rows import of_law, of_score, plain
from knowhow.types import Scored

if TYPE_CHECKING:
    from knowhow.experiments.run import Check

WIDTH = 160
"""Columns that are taken at most; a narrower terminal takes what it has."""

MOST = 100
"""Seeds of one check."""

IN_BUILDS = "it has no experiment of its own: every build predicts with it and scores it (stage verify)"
HEADINGS = ("Statement", "Derivation", "Assumptions")
LAST = ("Where it fails", "Source")


@dataclass(frozen=True, slots=True)
class Yours:
    """A model and data of the user's own; both or neither."""

    model: str | None
    data: str | None


def list_laws(output: Output) -> None:
    rows = []
    for law in laws.every_law():
        said = verdict(law.name) if law.experiments else "in every build"
        record = {"law": law.name, "title": law.title, "asks": law.asks, "question": QUESTIONS[law.asks], "tolerance": law.tolerance}
        output.row({**record, "verdict": said})
        rows.append((law.name, law.title, law.asks, law.tolerance, said))
    if not output.as_json:
        words = "\n".join(f"{name}: {question}" for name, question in QUESTIONS.items())
        output.result({}, f"{wrapped(('law', 'says', 'answers', 'tolerance', 'judged'), rows, (1, 3))}\n\n{words}")


def show(name: str, output: Output) -> None:
    law = laws.law(name)
    said = committed().get(name)
    output.result({**of_law(law), "judged": said}, page(law, said))


def page(law: Law, said: Mapping[str, Any] | None) -> str:
    """A law's page as text."""
    told, sections = of_law(law), law.sections
    others = [heading for heading in sections if heading not in (*HEADINGS, *LAST)]
    parts = [law.title, f"answers: {told['question']}"]
    parts += [f"{heading.upper()}\n{sections[heading]}" for heading in (*HEADINGS, *others) if heading in sections]
    parts.append(f"TOLERANCE\n{law.tolerance}")
    if law.experiments:
        parts.append("\n".join(["EXPERIMENTS", *(f"{number}. {_setting(one)}" for number, one in enumerate(told["experiments"], start=1))]))
        parts.append("\n".join(["CONTROLS (each must fail)", *map(_control, told["controls"])]))
        parts.append("JUDGED\n" + (f"not yet (on seeds {FRESH[0]} to {FRESH[-1]}, once)" if said is None else _judged(said)))
    else:
        parts.append(f"JUDGED\n{IN_BUILDS}")
    parts += [f"{heading.upper()}\n{sections[heading]}" for heading in LAST if heading in sections]
    return "\n\n".join(parts)


def check(name: str, seeds: str, yours: Yours, output: Output) -> None:
    """Runs the law's experiments and controls, on the user's model and data if they are given."""
    law, chosen = laws.law(name), seeds_of(seeds)
    if (yours.model is None) != (yours.data is None):
        raise UsageError("--model without --data" if yours.data is None else "--data without --model", allowed="both, or neither")
    if not law.experiments:
        return _say(law, Judgement("not applicable", IN_BUILDS, {}, {}, 0.0), output)
    if yours.model is not None and yours.data is not None:
        from knowhow.commands.build import allow_network

        allow_network(yours.model, yours.data)
        from knowhow.experiments.yours import applied

        law, why = applied(law, yours.model, yours.data)
        if why:
            return _say(law, Judgement("not applicable", why, {}, {}, 0.0), output)
    try:
        checks = _run(law, chosen, output)
    except UsageError as error:
        if yours.model is None:
            raise
        return _say(law, Judgement("not applicable", f"it cannot be measured on this model: {error.got}", {}, {}, 0.0), output)
    if yours.model is None:
        from knowhow.experiments.run import verdict as judged
    else:
        from knowhow.experiments.yours import judged
    for seed, one in checks.items():
        _scores(law, seed, one, output)
    _say(law, judged(law, checks), output)


def seeds_of(text: str) -> list[int]:
    """`0,1,2`, `0-4` or both. Raises UsageError for anything else."""
    try:
        ends = [[int(end) for end in part.split("-", 1)] for part in text.split(",")]
        found = [seed for low, *high in ends for seed in range(low, min((high or [low])[0], low + MOST) + 1)]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or len(found) > MOST:
        raise UsageError(f"--seeds {text!r}", allowed=f"different whole numbers, such as 0,1,2 or 0-4, at most {MOST}")
    return found


def wrapped(head: Sequence[str], rows: Sequence[Sequence[str]], loose: tuple[int, ...]) -> str:
    """A table whose `loose` columns share what the terminal's width leaves them; what is longer goes on in the next line."""
    columns = range(len(head))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in columns]
    room = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) - sum(widths[column] for column in columns if column not in loose) - 2 * (len(head) - 1)
    for column in loose:
        widths[column] = max(24, room // len(loose))
    lines = []
    for row in rows:
        cells = [textwrap.wrap(row[column], widths[column]) or [""] for column in columns]
        depth = max(map(len, cells))
        lines += [tuple(cell[line] if line < len(cell) else "" for cell in cells) for line in range(depth)]
    return table(head, lines)


def _run(law: Law, seeds: Sequence[int], output: Output) -> dict[int, Check]:
    from knowhow.experiments import run

    checks = {}
    with output.progress() as progress:
        for number, seed in enumerate(seeds):
            progress(f"stage {law.name}, seed {seed}", number, len(seeds))
            checks[seed] = run.check(law, seed, progress)
        progress(f"stage {law.name}", len(seeds), len(seeds))
    return checks


def _scores(law: Law, seed: int, one: Check, output: Output) -> None:
    """What was found at one seed: every prediction as a row for machines, a table for people."""
    parts = [("", "", one.scored), *(("control: ", name, scored) for name, scored in one.controls.items())]
    rows = []
    for mark, name, scored in parts:
        for each in scored:
            output.row({"event": "scored", "law": law.name, "seed": seed, "control": name or None, **of_score(each)})
        rows += [(mark + name, *line) for line in _lines(scored)]
    if not output.as_json:
        output.result({}, f"seed {seed}\n{table(('', 'quantity', 'predicted', 'allowed', 'measured', 'verdict'), rows)}\n")


def _lines(scored: Sequence[Scored]) -> list[tuple[str, str, str, str, str]]:
    """A line per quantity: its one prediction, or how many there are and the range of what was measured."""
    lines = []
    for quantity in dict.fromkeys(plain(one.prediction.quantity) for one in scored):
        own = [one for one in scored if plain(one.prediction.quantity) == quantity]
        verdicts = [one.verdict for one in own]
        counted = ", ".join(f"{verdicts.count(each)} {each}" if len(own) > 1 else each for each in dict.fromkeys(verdicts))
        first = own[0].prediction
        allowed = f"{first.low:.4g} to {first.high:.4g}" if len(own) == 1 else f"{len(own)} intervals"
        measured = [one.measured for one in own if one.measured is not None]
        lines.append((quantity, _range([one.prediction.value for one in own]), allowed, _range(measured), counted + _reason(own)))
    return lines


def _reason(own: Sequence[Scored]) -> str:
    """Why nothing was compared, where it was not."""
    reasons = list(dict.fromkeys(one.because for one in own if one.verdict == "not applicable" and one.because))
    return f" ({reasons[0]})" if reasons else ""


def _range(numbers: Sequence[float]) -> str:
    if not numbers:
        return "-"
    ends = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)


def _say(law: Law, said: Judgement, output: Output) -> None:
    controls = [f"control {name}: {'failed, as it must' if failed else 'did not fail'}" for name, failed in said.controls.items()]
    record = {"event": "judged", "law": law.name, "verdict": said.verdict, "because": said.because, "seeds": said.seeds, "controls": said.controls}
    output.result({**record, "inside": said.inside}, "\n".join([*controls, f"{law.name}: {said.verdict.upper()}, {said.because}"]))


def _judged(said: Mapping[str, Any]) -> str:
    """The committed judgement: verdict, controls and what was predicted and measured at the median."""
    head = ("experiment", "quantity", "n", "confirmed", "predicted", "from", "to", "measured", "residual")
    rows = [
        tuple(_cell(one[name]) for name in ("experiment", "quantity", "n", "confirmed", "value", "low", "high", "measured", "residual"))
        for one in said["figures"]
    ]
    controls = "\n".join(f"control {name}: {'failed at every seed' if failed else 'did not fail at every seed'}" for name, failed in said["controls"].items())
    seeds = ", ".join(f"{seed} {one}" for seed, one in said["seeds"].items())
    changed = ["its source has changed since"] if said.get("changed") else []
    lines = [
        f"{str(said['verdict']).upper()}: {said['because']}",
        *changed,
        f"seeds: {seeds}",
        controls,
        f"steps inside the gates: {_cell(said['inside'])} (median)",
    ]
    return "\n".join([*filter(None, lines), "", table(head, rows), "n: predictions over seeds and sites; figures are medians"])


def _setting(one: Mapping[str, Any]) -> str:
    """An experiment in a line."""
    rest = {name: value for name, value in one.items() if name not in ("system", "steps")}
    return f"{one['system']}, {one['steps']} steps; " + "; ".join(f"{name} {_plain(value)}" for name, value in rest.items())


def _control(one: Mapping[str, Any]) -> str:
    return f"{one['name']}: {one['because']}" + (f"\n   {_setting(one['experiment'])}" if one["experiment"] else "")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}".rstrip() for name, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
