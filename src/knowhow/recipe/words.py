"""The words that every recipe is made of: numbers with bounds, names, sections that refuse unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

SCHEMA_VERSION = 1


def _number(value: Any) -> Any:
    """`true` is not 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "true or false where a number belongs")
    return value


Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(_number)]
Amount = Annotated[float, Field(ge=0), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_number)]
Length = Annotated[int, Field(ge=8), BeforeValidator(_number)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="small letters, digits, `.`, `_` and `-`; at most 64")]


class Section(BaseModel):
    """Every part of a recipe: unknown keys are refused, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
