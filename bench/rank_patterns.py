"""Where an adapter's parameters go: the planned rank pattern against uniform LoRA, MLP only, a random pattern, AdaLoRA, EVA and LoRA-GA.

Equal trainable parameters (the head apart, which all train whole) and equal steps on a really trained 0.26M Llama, three tasks, five paired seeds (of
data, head and adapter); each arm's rate is swept on seed 0 and kept. Validation loss is read at matched forgetting: along each arm's looks, at the
largest rise of general text's loss that all arms of a seed have reached by their end, interpolated. Holm's correction over the arms.

    KNOWHOW_DATA=… python bench/rank_patterns.py             # about 170 runs of 10 s; appends to bench/results/rank_patterns.jsonl and resumes
    KNOWHOW_DATA=… python bench/rank_patterns.py --report
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import AdaLoraConfig, EvaConfig, LoraConfig, TaskType, get_peft_model
from peft.tuners.lora.config import LoraGAConfig
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from scipy import stats
from small_tasks import DATA, lines_of, write_parts

from knowhow import plan, run
from knowhow.diagnose import gradients
from knowhow.diagnose.subject import Subject
from knowhow.files import append_jsonl, read_jsonl
from knowhow.loop.optim import Optim, OptimSpec, schedule
from knowhow.loop.step import LoopSpec, train
from knowhow.model import adapters, load
from knowhow.model.loaded import site_of
from knowhow.recipe import Recipe
from knowhow.stages import diagnose
from knowhow.stages.phase import phases
from knowhow.stages.validation import validation

RESULTS = Path(__file__).parent / "results" / "rank_patterns.jsonl"
TASKS = ("trec", "sst2", "banking77")
ARMS = ("planned", "uniform", "mlp only", "random", "adalora", "eva", "lora-ga")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2, 3, 4)
STEPS, BATCH, RANK, TRAIN, VALID = 120, 1024, 4, 1500, 400
LOOKS = (8, 16, 30, 60, 90, 120)


def recipe_of(task: str, seed: int, folder: Path) -> Recipe:
    lines = lines_of(task)
    order = np.random.default_rng([seed, 11]).permutation(len(lines))
    files = write_parts(lines, order, folder, train=TRAIN, valid=VALID)
    said = {"name": "ranks", "seed": seed, "base": {"model": str(DATA / "weights/stories260K"), "context": 128}}
    phase = {"steps": STEPS, "batch_tokens": BATCH, "microbatch_tokens": BATCH, "weight_decay": 0.0}
    data = {"audit": False, **files}
    return Recipe.model_validate({**said, "task": {"labels": sorted({line["label"] for line in lines})}, "data": data, "adapt": [phase]})


def matrices_of(phase: Any, at: Any, rows: Any) -> tuple[dict[str, plan.Matrix], list[Any]]:
    """Sizes and first gradient of each hidden matrix, behind a head fitted on frozen features."""
    loaded = phase.fresh()
    batches = diagnose.some(rows, loaded.tokenizer.pad_token_id, at.recipe.seed, False)
    loaded.model.eval()
    diagnose.read_off(at, loaded, diagnose.unread(rows, batches, loaded.tokenizer.pad_token_id, at.recipe.seed, STEPS * BATCH // diagnose.READ_SHARE))
    subject = Subject(loaded.model, phase.objective(rows, loaded), batches[: diagnose.PULLS], [], head=tuple(load.head_modules(loaded.model)))
    hidden = subject.matrices()
    spectra = gradients.spectra(gradients.gradients(subject))
    return {site_of(name): plan.Matrix(*hidden[name].shape, values[: gradients.KEPT].tolist()) for name, values in spectra.items()}, batches


def random_pattern(matrices: dict[str, plan.Matrix], parameters: int, seed: int) -> dict[str, int]:
    noise = np.random.default_rng([seed, 13])
    return plan.allocated(
        {name: plan.Matrix(m.outputs, m.inputs, sorted(noise.exponential(size=len(m.values)), reverse=True)) for name, m in matrices.items()}, parameters
    )


def adapted(arm: str, phase: Any, rows: Any, matrices: dict[str, plan.Matrix], batches: list[Any], seed: int) -> Any:
    """The model with this arm's adapter; the same head for all."""
    loaded = phase.fresh()
    parameters = RANK * sum(matrix.price for matrix in matrices.values())
    mlp = {name: matrix for name, matrix in matrices.items() if ".mlp." in name}
    patterns = {
        "planned": lambda: plan.allocated(matrices, parameters),
        "uniform": lambda: plan.uniform(matrices, parameters),
        "mlp only": lambda: plan.uniform(mlp, parameters),
    }
    patterns["random"] = lambda: random_pattern(matrices, parameters, seed)
    if arm in patterns:
        return adapters.add_lora(loaded, rank=RANK, alpha=2.0 * RANK, ranks=patterns[arm](), seed=seed).model
    names = [name.rsplit(".", 1)[-1] for name in matrices]
    shared: dict[str, Any] = {
        "target_modules": sorted(set(names)),
        "lora_alpha": 2 * RANK,
        "task_type": TaskType.SEQ_CLS,
        "modules_to_save": load.head_modules(loaded.model),
    }
    torch.manual_seed(seed)
    if arm == "adalora":
        return get_peft_model(loaded.model, AdaLoraConfig(init_r=RANK + RANK // 2, target_r=RANK, tinit=10, tfinal=40, deltaT=5, total_step=STEPS, **shared))
    if arm == "eva":
        model = get_peft_model(loaded.model, LoraConfig(r=RANK, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0), **shared))
        fed = [{"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT.long()} for batch in batches[: diagnose.PULLS]]
        initialize_lora_eva_weights(model, fed, show_progress_bar=False)
        return model
    config = LoraConfig(r=RANK, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(), **shared)
    objective = phase.objective(rows, loaded)

    def step() -> None:
        for batch in batches[: diagnose.PULLS]:
            (objective(loaded.model, batch)[0] / objective.units(batch)).backward()

    preprocess_loraga(loaded.model, config, step)
    loaded.model.zero_grad(set_to_none=True)
    return get_peft_model(loaded.model, config)


def trained(arm: str, lr: float, phase: Any, at: Any, rows: Any, model: Any) -> dict[str, Any]:
    """(rise of general loss, validation loss) at LOOKS, and the trainable parameters of the adapter."""
    loaded = phase.fresh()
    loaded = replace(loaded, model=model)
    general, batches = diagnose.general_rows(at, loaded)
    look = validation(phase)

    def loss() -> float:
        model.eval()
        with torch.no_grad():
            value = float(sum(general(model, batch)[0] for batch in batches)) / sum(general.units(batch) for batch in batches)
        model.train()
        return value

    start, curve = loss(), []
    own = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in name)
    optim = Optim(model, OptimSpec(lr, head_lr=3e-3))
    stream = phase.batches(rows, loaded.tokenizer.pad_token_id)
    try:
        for info in train(model, phase.objective(rows, loaded), stream, optim, schedule("cosine", STEPS, warmup=0.05), LoopSpec(STEPS, precision="float32")):
            if arm == "adalora":
                model.base_model.update_and_allocate(info.step)
            if info.step in LOOKS:
                curve.append([loss() - start, look(loaded)[0]["valid_loss"]])
    except FloatingPointError:
        curve.append([float("inf"), float("inf")])
    return {"curve": curve, "parameters": own, "best": min(value for _, value in curve)}


def one(task: str, seed: int, todo: list[tuple[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as where, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(where)
        at = run.flow(recipe_of(task, seed, folder), runs=folder / "runs", resume=False, start_from=None, progress=lambda *_: None, root=folder, until="base")
        phase = phases(at)[-1]
        rows = phase.rows("train")
        matrices, batches = matrices_of(phase, at, rows)
        for arm, lr in todo:
            clock = time.monotonic()
            model = adapted(arm, phase, rows, matrices, batches, seed)
            found = trained(arm, lr, phase, at, rows, model)
            row = {"task": task, "seed": seed, "arm": arm, "lr": lr, **found, "seconds": round(time.monotonic() - clock, 1)}
            append_jsonl(RESULTS, row)
            print(
                f"{task} {seed} {arm} lr {lr:g}: best {found['best']:.4f}, forgot {found['curve'][-1][0]:.3f}, {found['parameters']:,} in {row['seconds']} s",
                flush=True,
            )


def rate_of(rows: list[dict[str, Any]], task: str, arm: str) -> float:
    mine = [row for row in rows if row["task"] == task and row["arm"] == arm and row["seed"] == 0]
    return float(min(mine, key=lambda row: row["best"])["lr"])


def at_forgetting(curve: list[list[float]], rise: float) -> float:
    """Lowest validation loss reached by the time that general text has risen by `rise`, interpolated between looks."""
    best = curve[0][1]
    for (low, before), (high, after) in itertools.pairwise(curve):
        if high <= rise:
            best = min(best, after)
        elif low < rise:
            best = min(best, before + (after - before) * (rise - low) / (high - low))
    return best


def report() -> None:
    rows = list(read_jsonl(RESULTS))
    differences: dict[str, list[float]] = {arm: [] for arm in ARMS if arm != "planned"}
    for task in TASKS:
        chosen = {arm: rate_of(rows, task, arm) for arm in ARMS}
        print(task, {arm: f"{lr:g}" for arm, lr in chosen.items()})
        for seed in SEEDS:
            mine = {row["arm"]: row for row in rows if row["task"] == task and row["seed"] == seed and row["lr"] == chosen[row["arm"]]}
            if len(mine) < len(ARMS):
                continue
            rise = min(max(point[0] for point in row["curve"]) for row in mine.values())
            losses = {arm: at_forgetting(row["curve"], rise) for arm, row in mine.items()}
            for arm in differences:
                differences[arm].append(losses["planned"] - losses[arm])
    tests = {arm: stats.ttest_1samp(values, 0.0).pvalue for arm, values in differences.items() if len(values) > 2}
    ordered = sorted(tests, key=lambda arm: tests[arm])
    holm, worst = {}, 0.0
    for at, arm in enumerate(ordered):
        worst = max(worst, min(1.0, tests[arm] * (len(ordered) - at)))
        holm[arm] = worst
    for arm, values in differences.items():
        if len(values) > 2:
            low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
            print(f"planned minus {arm}: {np.mean(values):+.4f} [{low:+.4f}, {high:+.4f}] nats over {len(values)} pairs, Holm p {holm[arm]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    asked = parser.parse_args()
    if asked.report:
        report()
        return
    for task in asked.tasks:
        known = {(row["seed"], row["arm"], row["lr"]) for row in read_jsonl(RESULTS) if row["task"] == task}
        if todo := [(arm, lr) for arm in ARMS for lr in RATES if (0, arm, lr) not in known]:
            one(task, 0, todo)
        rows = list(read_jsonl(RESULTS))
        for seed in SEEDS[1:]:
            if todo := [(arm, lr) for arm in ARMS if (seed, arm, lr := rate_of(rows, task, arm)) not in known]:
                one(task, seed, todo)


if __name__ == "__main__":
    main()
