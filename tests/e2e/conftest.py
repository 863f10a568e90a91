"""Fixtures that the tests of bad input share."""

from __future__ import annotations

from bad_fixtures import finished, models, place

__all__ = ["finished", "models", "place"]
