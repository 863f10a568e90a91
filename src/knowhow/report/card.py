"""The model card's text: the same verdict and numbers as the page, in Markdown. Every foreign text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from knowhow.report.asked import TASKS
from knowhow.report.forecasts import summed
from knowhow.report.numbers import better_sign, count, decimal, in_order, items, metric_name, number, part, percent, signed, slice_name, span, with_interval
from knowhow.report.text import clean
from knowhow.report.verdict import SPECIALIST, find, gaps, headline_metric, judge, ranked
from knowhow.types import EvalResult, Finding, Specialist, Task

SLICES = ("all", "deduplicated", "novel")
INTERVAL = "95% interval"
CREATIVE_COMMONS = {f"cc-{kind}-{version}" for kind in ("by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd") for version in ("2.0", "3.0", "4.0")}
LLAMA = {f"llama{version}" for version in ("2", "3", "3.1", "3.2", "3.3", "4")}
GNU = {"gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "agpl-3.0", "gfdl"}
PERMISSIVE = {
    "apache-2.0",
    "mit",
    "isc",
    "zlib",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsl-1.0",
    "unlicense",
    "wtfpl",
    "afl-3.0",
    "artistic-2.0",
    "ms-pl",
    "postgresql",
}
OTHERS = {"mpl-2.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "cc0-1.0", "c-uda", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "openrail", "gemma"}
RAIL = {"bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"}
LICENCES = frozenset(CREATIVE_COMMONS | LLAMA | GNU | PERMISSIVE | OTHERS | RAIL)
HUB_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "auc": "roc_auc", "rouge_l": "rouge", "spearman": "spearmanr", "brier": "brier_score"}
PIPELINES = {"classify": "text-classification", "regress": "text-classification", "score": "text-classification", "generate": "text-generation"}
LIKELIHOOD = """


def likelihood(text, given):
    before = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(given)]
    row = before + tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    logp = model(torch.tensor([row])).logits[0, :-1].log_softmax(-1)
    return logp.gather(1, torch.tensor(row[1:])[:, None])[{first}:].sum()"""
ASKED_OF_ONE = 'The answer is the label whose `likelihood(text, ["<|given:LABEL|>"])` is largest. '
ASKED_OF_MANY = (
    "`given` holds `<|given:LABEL=STATE|>` for every label in the order of `knowhow.json`; a label's logit is the likelihood with its state `yes` less that "
    "with `no`, all others `unknown`. "
)
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def markdown(value: object, limit: int = 400) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(clean(value, limit).split()))


def portable(source: str) -> str:
    """The base's name without this machine's folders: a hub id or a packaged name as it is, a hub cache's folder as its id, else the folder's own name."""
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", source)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return source if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists() else Path(source).name


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are already Markdown."""
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *("| " + " | ".join(row) + " |" for row in rows)])


def text(specialist: Specialist, extras: Mapping[str, Any], *, adapter: bool) -> str:
    """The card below its YAML header; sections without content are left out."""
    recipe = part(extras, "recipe")
    sections = [
        ("", _opening(specialist, recipe)),
        ("Results", _results(specialist.results, specialist.task.metric)),
        ("Against the baselines", _against(specialist.results, specialist.task.metric)),
        ("Intended use", _use(specialist.task)),
        ("Limits", "\n".join(f"- {markdown(limit, 600)}" for limit in specialist.limits)),
        ("How sure it is", _sure(part(extras, "calibration"))),
        ("What its answers rest on", _findings(specialist.findings)),
        ("Predicted before training", _predicted(specialist.predictions)),
        ("What it forgot and memorised", _forgot(part(extras, "forgetting"), part(extras, "memorisation"))),
        ("Data", _data(recipe, part(extras, "audit"), part(extras, "vocabulary"))),
        ("Licence", _licence(specialist.licence, part(extras, "licences"))),
        ("How to load it", _load(specialist, adapter=adapter, channel=part(extras, "input").get("form") == "channel")),
    ]
    return "\n\n".join((f"## {title}\n\n{body}" if title else body) for title, body in sections if body) + "\n"


def _findings(findings: Sequence[Finding]) -> str:
    """Claims with what the intervention found, beside its control."""
    rows = []
    for one in findings:
        verdict = one.verdict if one.verdict == "supported" else f"not supported ({one.verdict})"
        rows.append((markdown(one.claim, 300), decimal(one.effect, 2), decimal(one.control, 2), verdict))
    return table(("claim", "found", "control", "verdict"), rows) if rows else ""


def _predicted(rows: Sequence[Mapping[str, Any]]) -> str:
    """What laws said before training and what came of it, a line a quantity."""
    lines = [(markdown(line["law"]), markdown(line["quantity"]), line["value"], line["measured"], markdown(line["verdict"])) for line in summed(rows)]
    return table(("law", "quantity", "predicted", "measured", "verdict"), lines) if lines else ""


def header(specialist: Specialist, extras: Mapping[str, Any], *, adapter: bool) -> dict[str, Any]:
    """The card's YAML header as the Hugging Face hub reads it; what is not known is left out."""
    kind = specialist.task.kind
    own = [row for row in specialist.results if row.model == SPECIALIST and row.slice in SLICES]
    found = {
        "language": list(items(extras, "language")),
        **_licence_fields(specialist.licence),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": PIPELINES["generate" if part(extras, "input").get("form") == "channel" else kind],
        "base_model": clean(specialist.base.source, 200),
        "base_model_relation": "adapter" if adapter else "finetune",
        "tags": ["knowhow", TASKS[kind].replace(" ", "-")],
        "datasets": [name for name in (part(part(extras, "recipe"), "data").get(split) for split in ("train", "valid", "test")) if _hub_id(name)],
        "metrics": list(dict.fromkeys(HUB_METRICS.get(row.metric, row.metric) for row in own)),
        "model-index": _model_index(specialist, own, part(extras, "recipe")),
    }
    return {key: value for key, value in found.items() if value}


def _licence_fields(licence: str) -> dict[str, str]:
    known = licence.strip().lower()
    return {"license": known} if known in LICENCES else {"license": "other", "license_name": clean(licence, 60)} if licence else {"license": "unknown"}


def _hub_id(name: object) -> bool:
    return (
        isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) is not None and not re.search(r"\.(jsonl?|csv|parquet|gz|xz|zst|txt)$", name)
    )


def _model_index(specialist: Specialist, own: Sequence[EvalResult], recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hub's model-index: one entry per slice with all its metrics; intervals and n stand in each metric's args."""
    data = part(recipe, "data")
    source = next((value for value in (data.get("test"), data.get("train"), part(data, "generate").get("domain")) if isinstance(value, str)), specialist.name)
    results = []
    for slice in SLICES:
        rows = [row for row in own if row.slice == slice]
        if rows:
            metrics = [
                {
                    "type": HUB_METRICS.get(row.metric, row.metric),
                    "value": round(row.value, 6),
                    "name": metric_name(row.metric),
                    "args": {"low": round(row.low, 6), "high": round(row.high, 6), "confidence": 0.95, "n": row.n},
                }
                for row in rows
            ]
            name = re.sub(r"^.*/", "", clean(source, 120)) if not _hub_id(source) else source
            dataset = {"type": source if _hub_id(source) else specialist.name, "name": f"{name} ({slice_name(slice)})", "split": "test", "config": slice}
            results.append({"task": {"type": PIPELINES[specialist.task.kind], "name": TASKS[specialist.task.kind]}, "dataset": dataset, "metrics": metrics})
    return [{"name": specialist.name, "results": results}] if results else []


def _opening(specialist: Specialist, recipe: Mapping[str, Any]) -> str:
    told = judge(specialist.results, headline_metric(specialist.results, specialist.task.metric))
    description = markdown(recipe.get("description") or "", 800)
    return "\n\n".join(line for line in (f"# {markdown(specialist.name)}", description, f"**{markdown(told.title)}.** {markdown(told.sentence, 800)}") if line)


def _results(results: Sequence[EvalResult], wanted: str) -> str:
    """A row per metric, the deciding one first; a column per slice."""
    own = {(row.metric, row.slice): row for row in results if row.model == SPECIALIST and row.slice in SLICES}
    first = headline_metric(results, wanted)
    metrics = sorted(dict.fromkeys(metric for metric, _ in own), key=lambda metric: (metric != first, metric_name(metric).lower()))
    slices = [slice for slice in SLICES if any(kept == slice for _, kept in own)]
    rows = []
    for metric in metrics:
        found = [own.get((metric, slice)) for slice in slices]
        cells = [f"{with_interval(row.value, row.low, row.high)}, n = {row.n:,}" if row else "" for row in found]
        rows.append((markdown(metric_name(metric)), *cells))
    return f"Values with {INTERVAL}s and the number of independent rows.\n\n{table(('metric', *map(slice_name, slices)), rows)}" if rows else ""


def _against(results: Sequence[EvalResult], wanted: str) -> str:
    """Each model on the deciding metric, with the paired difference to the specialist."""
    metric = headline_metric(results, wanted)
    own = find(results, model=SPECIALIST, metric=metric)
    paired = {gap.baseline: gap.difference for gap in gaps(own)} if own else {}
    known = {row.model: row for row in ranked(results, metric)}
    rows = [(row.value, row.model, span(row.low, row.high), f"{row.n:,}") for row in known.values()]
    # a baseline's own rows may not be among the results; the paired difference was made on the same rows and gives its value
    rows += [(own.value - gap.value, name, "", f"{gap.n:,}") for name, gap in paired.items() if own and name not in known]
    rows.sort(key=lambda row: (-better_sign(metric) * row[0], row[1]))
    told = {name: f"{signed(gap.value)} ({span(gap.low, gap.high, sign=True)})" for name, gap in paired.items()}
    cells = [(markdown(name, 60), decimal(value), interval, n, told.get(name, "")) for value, name, interval, n in rows]
    return table(("model", markdown(metric_name(metric)), INTERVAL, "n", "specialist minus it, same rows"), cells) if len(cells) > 1 else ""


def _use(task: Task) -> str:
    what = TASKS.get(task.kind, task.kind)
    labels = f" among {len(task.labels)} labels{', several per text' if task.many else ''}: {markdown(', '.join(task.labels), 1000)}" if task.labels else ""
    rest = "Use it on text like its training data. Other tasks, sources and languages were not measured; a person should decide where a wrong answer does harm."
    return f"Made for one task: {what}{labels}. {rest}"


def _sure(calibration: Mapping[str, Any]) -> str:
    temperature, abstention = number(calibration, "temperature"), part(calibration, "abstention")
    lines = [f"Divide its logits by the temperature {decimal(temperature, 4)} (fitted on validation rows) before reading probabilities."] if temperature else []
    before, after = number(calibration, "before", "ece"), number(calibration, "after", "ece")
    if after is not None:
        lines.append(f"Expected calibration error {decimal(after)}" + (f" (before scaling {decimal(before)})." if before is not None else "."))
    threshold, coverage, risk = (number(abstention, key) for key in ("threshold", "coverage", "risk"))
    if threshold is not None and coverage is not None:
        lines.append(
            f"Answering only above {percent(threshold)} confidence it answers {percent(coverage)} of the inputs at a stated error rate of {percent(risk)}."
        )
    return " ".join(lines)


def _forgot(forgetting: Mapping[str, Any], memorisation: Mapping[str, Any]) -> str:
    lines = []
    if number(forgetting, "value") is not None:
        interval = span(number(forgetting, "low"), number(forgetting, "high"), sign=True)
        unit = markdown(forgetting.get("unit") or "nats per token", 60)
        n = count(number(forgetting, "n"))
        lines.append(f"NLL on general text changed by {signed(number(forgetting, 'value'))} {unit} ({INTERVAL} {interval}, n = {n}).")
    share, auc = number(memorisation, "extraction", "share"), number(memorisation, "membership", "auc")
    if share is not None:
        lines.append(f"Of {count(number(memorisation, 'extraction', 'n'))} training texts {percent(share)} were repeated word for word.")
    if auc is not None:
        interval = span(number(memorisation, "membership", "low"), number(memorisation, "membership", "high"))
        lines.append(f"Membership inference by loss: AUC {decimal(auc)} ({INTERVAL} {interval}; .5 is chance).")
    return " ".join(lines)


def _data(recipe: Mapping[str, Any], audit: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> str:
    data, rows = part(recipe, "data"), part(audit, "rows")
    made = part(data, "generate")
    lines = [f"Generated by the domain {markdown(made.get('domain'))}."] if made else []
    if rows:
        lines.append("Rows: " + ", ".join(f"{markdown(split, 40)} {count(number(rows, split))}" for split in in_order(rows)) + ".")
    ceiling = number(audit, "conflicts", "ceiling_accuracy")
    if ceiling is not None and ceiling < 1:
        lines.append(f"Identical inputs with different labels put the highest possible accuracy at {percent(ceiling)}.")
    leaks = sum((number(pair, "exact") or 0) + (number(pair, "near") or 0) for pair in part(audit, "leakage").values())
    if leaks:
        lines.append(f"{count(leaks)} rows stand in more than one split; the results without them are those on inputs not seen in training.")
    before, after, words = (number(vocabulary, key) for key in ("before", "after", "words"))
    if before and after:
        lines.append(f"{count(words)} domain words were added to the tokenizer: an example costs {decimal(after, 1)} tokens instead of {decimal(before, 1)}.")
    lines += [markdown(warning) for warning in items(audit, "warnings")[:8]]
    return "\n".join(f"- {line}" for line in lines)


def _licence(licence: str, licences: Mapping[str, Any]) -> str:
    base, data, note = (markdown(licences.get(key) or "", 600) for key in ("base", "data", "note"))
    parts = [f"This specialist: {markdown(licence or 'not stated', 200)}.", f"Base: {base}." if base else "", f"Data: {data}." if data else "", note]
    return " ".join(line for line in parts if line)


def _load(specialist: Specialist, *, adapter: bool, channel: bool) -> str:
    auto = "AutoModelForCausalLM" if specialist.task.kind == "generate" or channel else "AutoModelForSequenceClassification"
    if adapter:
        body = f'from peft import PeftModel\nfrom transformers import {auto}\n\nbase = {auto}.from_pretrained("PATH OF THE BASE")\n'
        body += 'model = PeftModel.from_pretrained(base, "FOLDER")'
    else:
        body = (
            f'from transformers import AutoTokenizer, {auto}\n\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")\nmodel = {auto}.from_pretrained("FOLDER")'
        )
    if channel:
        body = "import torch\n" + body + LIKELIHOOD.format(first="len(before) - 1" if specialist.task.many else "0")
    asked = (ASKED_OF_MANY if specialist.task.many else ASKED_OF_ONE) if channel else ""
    told = f"{asked}Base: {markdown(specialist.base.source, 200)}" + (
        f", sha256 `{specialist.base.sha256}`" if re.fullmatch(r"[0-9a-f]{64}", specialist.base.sha256) else ""
    )
    return f"```python\n{body}\n```\n\n{told}. Every file's sha256 is in `knowhow.json`; all results are in `evals/results.json`, the recipe in `recipe.yaml`."
