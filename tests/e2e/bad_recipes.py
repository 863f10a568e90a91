"""Bad recipes: what a person mistypes, and what a hostile file tries."""

from __future__ import annotations

from functools import partial

from bad_place import Case, Place, jsonl, rows

from knowhow.data.teacher import Teacher


def key(name: str, value: object, **more: object) -> object:
    """A build with one key changed."""
    return lambda place: place.recipe({name: value} | {key.replace("__", "."): value for key, value in more.items()})


def generated(**options: object) -> object:
    return key("data.generate", {"domain": "malware", "options": options}, data__train=None)


def raw(text: str | bytes) -> object:
    return lambda place: place.yaml(text)


def sets(*said: str) -> object:
    return lambda place: [*place.recipe(), *(word for text in said for word in ("--set", text))]


def no_data_folder(place: Place) -> list[str]:
    place.patch.setattr("knowhow.reading.paths.data_folder", lambda environ=None: None)
    return place.recipe(data="$KNOWHOW_DATA/tasks/rows.jsonl")


def empty_data_folder(place: Place) -> list[str]:
    place.patch.setenv("KNOWHOW_DATA", str(place.folder / "nowhere"))
    return place.recipe(data="$KNOWHOW_DATA/tasks/rows.jsonl")


def silent_teacher(place: Place) -> list[str]:
    """Nobody waits for it between the tries."""
    place.patch.setattr("knowhow.data.teacher.Teacher", partial(Teacher, sleep=lambda seconds: None))
    return place.recipe({"data.synthesize": {"teacher_url": "http://127.0.0.1:9/v1", "teacher_model": "x", "rows": 1}})


def out_of_environment(name: str, value: str) -> object:
    def given(place: Place) -> list[str]:
        place.patch.setenv(name, value)
        return place.recipe()

    return given


ANCHORS = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [*{before}, *{before}]\n" for before, name in zip("abcdefgh", "bcdefghi"))
HEAD = "schema_version: 1\nname: tiny\n"
GOOD = HEAD + "data: {train: rows.jsonl}\n"
SECTIONS = {
    "task": ("task.knd", "task.kind"), "base": ("base.modle", "base.model"), "vocabulary": ("base.vocabulary.extnd", "base.vocabulary.extend"),
    "data": ("data.trian", "data.train"), "fields": ("data.fields.txt", "data.fields.text"), "split": ("data.split.vald", "data.split.valid"),
    "phase": ("adapt.0.step", "adapt.0.steps"), "lora": ("adapt.0.lora.rnk", "adapt.0.lora.rank"), "evaluate": ("evaluate.metric", "evaluate.metrics"),
    "package": ("package.merg", "package.merge"), "budget": ("budget.minute", "budget.minutes"), "generate": ("data.generate.domian", "data.generate.domain"),
    "synthesize": ("data.synthesize.template", "data.synthesize.templates"),
}  # fmt: skip
"""{section: (an unknown key in it, the one that was meant)}"""

CASES = (
    *(Case(f"unknown key in {name}", key(wrong, 1), (f"`{wrong}`", f"did you mean `{right}`", "r.yaml:")) for name, (wrong, right) in SECTIONS.items()),
    Case("unknown key at the top", key("dat", {}), ("`dat`", "did you mean `data`", "r.yaml:")),
    Case("a key that another tool has", key("adapt.0.learning_rate", 1e-3), ("did you mean `adapt.0.lr`",)),
    Case("a key in the wrong section", key("task.lr", 1e-3), ("did you mean `adapt.0.lr`",)),
    Case("nine mistakes", lambda p: p.recipe({f"task.mistake{at}": at for at in range(9)}), ("9 problems", "and 1 more")),
    Case("a thousand mistakes", lambda p: p.recipe({f"mistake{at}": at for at in range(1000)}), ("1000 problems", "and 992 more")),
    Case("wrong type: a word for a number", key("adapt.0.steps", "many"), ('`adapt.0.steps` is "many"', "a whole number")),
    Case("wrong type: a list for a section", key("data", ["rows.jsonl"]), ("`data`", "a section")),
    Case("wrong type: a section for a list", key("adapt", {"steps": 2}), ("`adapt`", "a list")),
    Case("wrong type: true for a number", key("adapt.0.steps", True), ("`adapt.0.steps`", "a whole number")),
    Case("wrong type: a number for a name", key("name", 7), ("`name`", "in quotes")),
    Case("wrong type: a fraction of a step", key("adapt.0.steps", 2.5), ("`adapt.0.steps`", "a whole number")),
    Case("out of range: a share of one", key("data.split.valid", 1.0), ("`data.split.valid`", "below 1")),
    Case("out of range: shares that leave nothing", key("data.split", {"valid": 0.5, "test": 0.5}), ("data.split", "lower")),
    Case("out of range: no steps", key("adapt.0.steps", 0), ("`adapt.0.steps`", "at least 1")),
    Case("out of range: a negative rate", key("adapt.0.lr", -1.0), ("`adapt.0.lr`", "above 0")),
    Case("out of range: an endless rate", key("adapt.0.lr", float("inf")), ("`adapt.0.lr`",)),
    Case("out of range: NaN", key("adapt.0.weight_decay", float("nan")), ("`adapt.0.weight_decay`",)),
    Case("out of range: a seed", key("seed", -1), ("`seed`", "at least 0")),
    Case("out of range: a huge seed", key("seed", 2**63), ("`seed`", "below")),
    Case("out of range: confidence", key("evaluate.confidence", 1.5), ("`evaluate.confidence`", "below 1")),
    Case("an empty sweep", key("adapt.0.lr", []), ("`adapt.0.lr`",)),
    Case("no phases", key("adapt", []), ("`adapt`",)),
    Case("a number as a channel", key("adapt.0.objective", "channel", task__kind="regress"), ("`adapt.0.objective` is channel", "classify")),
    Case("a channel with lora", key("adapt.0.objective", "channel", adapt__0__method="lora"), ("`method: lora`", "use method full")),
    Case("a channel with a head's keys", key("adapt.0.objective", "channel", adapt__0__drop_tokens=0.1), ("`drop_tokens`", "objective classify")),
    Case("a channel's label tokens", key("adapt.0.objective", "channel", package__label_tokens=True), ("`package.label_tokens`", "leave it out")),
    Case("two lengths", key("adapt.0.epochs", 3), ("one of steps, epochs, minutes", "steps and epochs")),
    Case("three lengths", key("adapt.0.epochs", 3, adapt__0__minutes=1), ("steps and epochs and minutes",)),
    Case("no name", key("name", None), ("no `name`",)),
    Case("a name with a slash", key("name", "../tiny"), ("`name`", "at most 64")),
    Case("a name of 65 letters", key("name", "n" * 65), ("`name`", "at most 64")),
    Case("no data", key("data", None), ("no `data`",)),
    Case("data from nowhere", key("data.train", None), ("`train`", "`generate`")),
    Case("data from two places", key("data.generate", {"domain": "malware"}), ("either `train`",)),
    Case("a newer version", key("schema_version", 99), ("schema_version 99", "upgrade")),
    Case("a version that is a word", key("schema_version", "one"), ("schema_version",)),
    Case("unknown task", key("task.kind", "clasify"), ("`task.kind`", "classify, regress, generate, score")),
    Case("unknown domain", key("data.generate", {"domain": "weather"}, data__train=None), ("'weather'", "malware")),
    Case("unknown option of a domain", generated(teir="O"), ("'teir'", "did you mean 'tier'")),
    Case("an option out of range", generated(tier="Z"), ("'Z'", "P, S, O, F")),
    Case("a tier that is NaN", generated(tier={"O": float("nan")}), ("tier",)),
    Case("unknown reader", key("data.domain", "weather"), ("'weather'", "malware")),
    Case("a reader on another's file", key("data.domain", "malware"), ()),
    Case("unknown metric", key("task.metric", "f17"), ("'f17'", "macro_f1", "accuracy")),
    Case("a metric almost right", key("task.metric", "macrof1"), ("'macrof1'", "macro_f1")),
    Case("a metric that does not fit", key("task.metric", "spearman"), ("spearman", "macro_f1")),
    Case("unknown metric to report", key("evaluate.metrics", ["accuracy", "f17"]), ("'f17'", "macro_f1")),
    Case("a metric to report that does not fit", key("evaluate.metrics", ["rouge_l"]), ("rouge_l", "macro_f1")),
    Case("unknown baseline", key("evaluate.baselines", ["majorty"]), ("majority",)),
    Case("a baseline that does not fit", key("evaluate.baselines", ["all-positive"]), ("all-positive",)),
    Case("a pattern that is none", key("base.vocabulary", {"extend": True, "pattern": "("}), ("`base.vocabulary`", "no regular expression")),
    Case("a context longer than the base's", key("base.context", 10**6), (), code=0, leaves="more"),
    Case("a context of one token", key("base.context", 1), ("context",)),
    Case("one label", key("task.labels", ["warm"]), ("'cold'", "allowed: warm")),
    Case("the same label twice", key("task.labels", ["warm", "cold", "warm"]), ("'warm'", "twice")),
    Case("a blank label of the task", key("task.labels", ["warm", "cold", " "]), ("`task`", "blank")),
    Case("microbatch above batch", key("adapt.0.microbatch_tokens", 10**6), (), code=0, leaves="more"),
    Case("a teacher that is no address", key("data.synthesize", {"teacher_url": "nowhere", "teacher_model": "x"}), ("teacher_url",)),
    Case("a teacher that does not answer", silent_teacher, ("127.0.0.1:9",)),
    Case("templates with an unknown slot", key("data.synthesize", {"templates": ["a {thing}"], "label": "warm"}), ("thing",)),
    Case("templates without a label", key("data.synthesize", {"templates": ["a {thing}"], "slots": {"thing": ["b"]}}), ("label",)),
    Case("alias bomb", raw(HEAD + ANCHORS), ("an alias",)),
    Case("tabs", raw("name: tiny\ndata:\n\ttrain: rows.jsonl\n"), ("r.yaml:3", "not with tabs")),
    Case("duplicate keys", raw(GOOD + "seed: 1\nseed: 2\n"), ("`seed` twice", "r.yaml:4", "r.yaml:5")),
    Case("a Python tag", raw(GOOD + "seed: !!python/object/apply:os.getcwd []\n"), ("a tag", "r.yaml:4")),
    Case("two documents", raw(GOOD + "---\n" + GOOD), ("second document",)),
    Case("a bracket left open", raw(GOOD + "task: {kind: classify\n"), ("not YAML",)),
    Case("nested too deep", raw("a: " + "[" * 3000 + "]" * 3000), ("nested more than",)),
    Case("a recipe of 2 MB", raw(GOOD + "#" * 2_000_000), ("2,000", "at most 1,000,000")),
    Case("a list as recipe", raw("- a\n- b\n"), ("a list", "keys and values")),
    Case("a text as recipe", raw("hello there\n"), ("one value",)),
    Case("an empty recipe", raw(""), ("an empty recipe", "knowhow init")),
    Case("a comment as recipe", raw("# nothing\n"), ("an empty recipe",)),
    Case("binary as recipe", raw(bytes(range(256))), ("r.yaml",)),
    Case("NUL in a recipe", raw(GOOD + "description: a\0b\n"), ("character",)),
    Case("UTF-16 recipe", raw(GOOD.encode("utf-16")), ("UTF-16", "UTF-8")),
    Case("latin-1 recipe", raw(GOOD.encode() + "description: café\n".encode("latin-1")), ("r.yaml:4", "UTF-8")),
    Case("a recipe for a base", raw(HEAD + "corpora: {a: {files: [rows.jsonl]}}\nvalid: {a: {files: [rows.jsonl]}}\ntokens: 99999\n"), ("knowhow pretrain",)),
    Case("a recipe is a folder", lambda p: (p.file("folder/a.yaml", GOOD), ["build", "folder"])[1], ("a folder", "a.yaml")),
    Case("no such recipe", lambda p: (p.file("tiny.yaml", GOOD), ["build", "tinny.yaml"])[1], ("no such file", "tiny.yaml")),
    Case("a recipe that is data", lambda p: ["build", p.file("rows.jsonl", jsonl(rows()))], ("rows.jsonl",)),
    Case("a relative path that leads nowhere", key("data.train", "sub/rows.jsonl"), ("`data.train`", "has no `sub`")),
    Case("a validation file that is missing", key("data.valid", "vlid.jsonl"), ("`data.valid`", "r.yaml:")),
    Case("KNOWHOW_DATA unset", no_data_folder, ("KNOWHOW_DATA is not set", "export KNOWHOW_DATA")),
    Case("KNOWHOW_DATA leads nowhere", empty_data_folder, ("`data.train`", "nowhere")),
    Case("KNOWHOW_SEED is a word", out_of_environment("KNOWHOW_SEED", "soon"), ("KNOWHOW_SEED", "`seed`")),
    Case("KNOWHOW_SET without =", out_of_environment("KNOWHOW_SET", "seed"), ("KNOWHOW_SET", "key.path=value")),
    Case("--set without =", sets("seed"), ("--set seed", "key.path=value")),
    Case("--set without a key", sets("=3"), ("key.path=value",)),
    Case("--set an unknown key", sets("adapt.0.stpes=3"), ("--set adapt.0.stpes=3", "did you mean `adapt.0.steps`")),
    Case("--set an item that is not there", sets("adapt.7.steps=3"), ("item `7`", "0 to 0")),
    Case("--set inside a value", sets("seed.x=3"), ("--set seed.x=3", "`seed` is a section")),
    Case("--set a value of another type", sets("adapt.0.steps=[1, 2]"), ("`adapt.0.steps`",)),
    Case("--set with broken YAML", sets("task={kind: "), ("--set task={kind:", "not YAML")),
    Case("a budget of a second", key("budget.minutes", 0.01), ("minutes", "budget.minutes"), code=5),
    Case("a budget of no memory", key("budget.memory_gb", 0.01), ("memory", "budget.memory_gb"), code=5),
    Case("a budget of no disk", key("budget.disk_gb", 1e-6), ("disk", "budget.disk_gb"), code=5),
    Case("a gate not met", key("budget.beat_baselines", True), ("does not beat majority", "budget"), code=3, leaves="run"),
)
