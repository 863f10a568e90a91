"""Reading recipes: YAML text and overrides in, a checked recipe out (layer 0: standard library, PyYAML, pydantic).

Flow: text (values that remember their lines) → overrides (environment, then `--set`) → migrations → problems (one error for all of them) → paths.
"""

from knowhow.reading.paths import data_folder, expanded, locate, located
from knowhow.reading.recipes import SCHEMA_FILE, dump, migrate, read, schema

__all__ = ["SCHEMA_FILE", "data_folder", "dump", "expanded", "locate", "located", "migrate", "read", "schema"]
