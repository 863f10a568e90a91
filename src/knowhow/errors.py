"""One family of user errors and their exit codes.

A user error says what was got, what is allowed and what to change. Anything else that escapes is our own bug (exit 1).
"""

from __future__ import annotations

OK, BUG, USAGE, GATE, SAFETY, RESOURCE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 75


class KnowhowError(Exception):
    """A user error: printed on one screen as got / allowed / what to do, never as a traceback."""

    exit_code = USAGE

    def __init__(self, got: str, *, allowed: str = "", fix: str = "", where: str = "") -> None:
        """`got`: what was found (with the value); `allowed`: what would have been right; `fix`: what to change; `where`: file:line, key or row."""
        self.got, self.allowed, self.fix, self.where = got, allowed, fix, where
        super().__init__(self.text())

    def text(self) -> str:
        """The error as lines; long values are cut so that it fits one screen."""
        parts = [("at", self.where), ("got", self.got), ("allowed", self.allowed), ("do", self.fix)]
        return "\n".join(f"{name:>8}: {_short(value)}" for name, value in parts if value)


class UsageError(KnowhowError):
    """Bad command line, recipe or data (exit 2)."""


class GateError(KnowhowError):
    """A quality gate that the recipe asked for was not met (exit 3)."""

    exit_code = GATE


class SafetyError(KnowhowError):
    """Refused before anything opened it (exit 4)."""

    exit_code = SAFETY


class ResourceError(KnowhowError):
    """Out of disk or memory, or the estimate says that it would be (exit 5)."""

    exit_code = RESOURCE


class Interrupted(KnowhowError):
    """Stopped by the user; nothing is lost and `--resume` goes on (exit 75)."""

    exit_code = INTERRUPTED


def _short(value: str, limit: int = 1200) -> str:
    value = value.encode("utf-8", "backslashreplace").decode()
    return value if len(value) <= limit else f"{value[:limit]} … ({len(value) - limit} more characters)"
