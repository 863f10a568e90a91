"""Domains: fields of work with sources, a generator and a vocabulary of their own. Found by the entry point `knowhow.domains`."""

from __future__ import annotations

from importlib.metadata import entry_points

from knowhow.errors import UsageError
from knowhow.protocols import Domain


def find_domain(name: str) -> Domain:
    """The installed domain called `name`; raises UsageError listing those that are installed."""
    found = {point.name: point for point in entry_points(group="knowhow.domains")}
    if name not in found:
        raise UsageError(f"no domain called {name!r}", allowed=", ".join(sorted(found)) or "none is installed", fix="install the package that brings it")
    domain: Domain = found[name].load()
    return domain
