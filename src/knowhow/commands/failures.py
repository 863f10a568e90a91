"""Every way a command can fail, as one screen and an exit code; a traceback is saved to a file, never shown."""

from __future__ import annotations

import errno
import io
import os
import platform
import shlex
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import typer

from knowhow import __version__
from knowhow.errors import BUG, INTERRUPTED, OK, Interrupted, KnowhowError, ResourceError, UsageError
from knowhow.files import FULL, system_error
from knowhow.progress import json_line

ClickError: Any = typer.BadParameter.__mro__[2]
"""The family of errors about the command line itself, wherever typer takes it from."""

CTRL_C = 130
"""What typer answers when it has caught a KeyboardInterrupt itself."""

_NO_MEMORY = (
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "can't start new thread",
    "Failed to launch worker thread",
)
_PATHS = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_RESUMABLE = ("build", "pretrain", "study")


def guarded(app: typer.Typer, words: list[str]) -> int:
    """Run the command line `words`; returns the exit code."""
    as_json = "--json" in words or os.environ.get("KNOWHOW_JSON", "").lower() in ("1", "true", "yes", "on")
    debug = os.environ.get("KNOWHOW_DEBUG") == "1"
    _settle(debug)
    _open_streams()
    try:
        code = app(args=words, standalone_mode=False, prog_name="knowhow")
        sys.stdout.flush()
        if code == CTRL_C:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else OK
    except BaseException as error:
        # typer turns a broken pipe into an exit of its own.
        if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
            return _unread(words)
        if debug and not isinstance(error, KnowhowError | ClickError | SystemExit):
            raise
        return _show(error, words, as_json)


def named(error: BaseException, words: list[str]) -> KnowhowError | None:
    """The user error that an exception amounts to; None when it is our own bug."""
    if any(_out_of_memory(cause) for cause in _causes(error)):
        return ResourceError(
            "out of memory", fix="use a smaller `microbatch_tokens` (--set adapt.0.microbatch_tokens=1024), fewer rows (`data.limit`) or a smaller base"
        )
    if isinstance(error, KnowhowError):
        return error
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        # some versions of typer look a path up before anybody has checked it
        return UsageError("a null character in a path", allowed="a path", fix=f"knowhow {_command(words)} --help")
    if isinstance(error, ClickError):
        message = error.format_message()
        return UsageError(message, fix="knowhow --help" if "No such command" in message else f"knowhow {_command(words)} --help")
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted("stopped", fix=_how_to_go_on(words))
    if system_error(error) in FULL:
        where = str(error.filename or "") if isinstance(error, OSError) else ""
        return ResourceError("the disk is full", fix="free some space (`knowhow runs gc`), then run it again", where=where)
    if isinstance(error, OSError) and error.errno in _PATHS and error.filename:
        return UsageError(str(error.strerror), fix="check the path and its permissions", where=str(error.filename))
    return None


def _unread(words: list[str]) -> int:
    """Whoever read our output has gone. What was only said is done with; work that was cut short can be taken up again."""
    # Python would complain again when it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if _command(words) not in _RESUMABLE:
        return OK
    with suppress(OSError):
        sys.stderr.write(f"knowhow: stopped\n{_printable(Interrupted('nobody reads the output any more', fix=_how_to_go_on(words)).text())}\n")
    return INTERRUPTED


def _show(error: BaseException, words: list[str], as_json: bool) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else BUG
    user = named(error, words)
    if user is None:
        path = _saved(error, words)
        got = f"{type(error).__name__}: {error}"[:300]
        user = KnowhowError(
            got, fix=f"this is a bug in knowhow; please report it with {path}" if path else "this is a bug in knowhow; KNOWHOW_DEBUG=1 shows where"
        )
        code = BUG
    else:
        code = user.exit_code
    if as_json:
        sys.stdout.write(json_line(as_record(user, code)))
        sys.stdout.flush()
    else:
        sys.stderr.write(f"knowhow: {'bug' if code == BUG else 'stopped' if isinstance(user, Interrupted) else 'error'}\n{_printable(user.text())}\n")
    return code


def as_record(error: KnowhowError, code: int) -> Mapping[str, Any]:
    """{"error": {…}} for machines."""
    kind = "Bug" if code == BUG else type(error).__name__
    return {"error": {"type": kind, "code": code, "message": error.text(), "got": error.got, "allowed": error.allowed, "fix": error.fix, "where": error.where}}


def _settle(debug: bool) -> None:
    """Quiet libraries; SIGTERM ends like Ctrl-C, so that what was done is kept."""
    for name, value in {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
        os.environ.setdefault(name, value)
    if not debug:
        warnings.simplefilter("ignore")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _open_streams() -> None:
    """Streams that were closed before we came swallow what is written; a terminal that lacks a character gets its number."""
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _command(words: list[str]) -> str:
    plain = [word for word in words if not word.startswith("-")]
    return " ".join(plain[: 2 if plain[:1] in (["runs"], ["laws"]) else 1])


def _how_to_go_on(words: list[str]) -> str:
    again = shlex.join(["knowhow", *words])
    if _command(words) in _RESUMABLE and "--resume" not in words:
        again += " --resume"
    return f"go on with: {again}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was raised from: a library's failure for want of memory may have been taken for a fault of its input."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, KnowhowError) and any(words in str(error) for words in _NO_MEMORY)


def _saved(error: BaseException, words: list[str]) -> str:
    """The traceback in a file; its path, or nothing when even that cannot be written."""
    about = f"knowhow {__version__}, Python {platform.python_version()}, {platform.platform()}\n{shlex.join(['knowhow', *words])}\n\n"
    try:
        handle, path = tempfile.mkstemp(prefix="knowhow-bug-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(about + "".join(traceback.format_exception(error)))
    except OSError:
        return ""
    return path


def _printable(text: str) -> str:
    """Control characters of hostile input do not reach the terminal."""
    clean = "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape", "backslashreplace").decode() for char in text)
    encoding = sys.stderr.encoding or "ascii"
    return clean.encode(encoding, "backslashreplace").decode(encoding)
