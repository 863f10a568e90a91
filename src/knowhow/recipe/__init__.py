"""Recipe: what a person writes. YAML in, JSON Schema out; an unknown key is an error that names the line and the nearest valid key.

A value written here beats every default and every plan. `None` means "not said": the stage decides and the report shows what it decided.
"""

from knowhow.recipe.phase import PLAIN_BATCH, PLAIN_RANK, PLAIN_RATE, LoraSpec, PhaseSpec, TeacherSpec
from knowhow.recipe.pretraining import CorpusSpec, PretrainRecipe
from knowhow.recipe.specialist import (
    BaseSpec,
    BudgetSpec,
    DataSpec,
    EvaluateSpec,
    FieldsSpec,
    GenerateSpec,
    PackageSpec,
    ReadoutSpec,
    Recipe,
    SplitSpec,
    SynthesizeSpec,
    TaskSpec,
    VocabularySpec,
)
from knowhow.recipe.words import SCHEMA_VERSION, Section

__all__ = [
    "PLAIN_BATCH",
    "PLAIN_RANK",
    "PLAIN_RATE",
    "BaseSpec",
    "BudgetSpec",
    "CorpusSpec",
    "DataSpec",
    "EvaluateSpec",
    "FieldsSpec",
    "GenerateSpec",
    "LoraSpec",
    "PackageSpec",
    "PhaseSpec",
    "PretrainRecipe",
    "ReadoutSpec",
    "Recipe",
    "SCHEMA_VERSION",
    "Section",
    "SplitSpec",
    "SynthesizeSpec",
    "TaskSpec",
    "TeacherSpec",
    "VocabularySpec",
]
