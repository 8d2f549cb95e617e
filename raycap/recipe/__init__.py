"""The whole configuration of a run, typed: every default once, unknown keys are errors."""

from raycap.recipe.load import list_recipes, load_recipe, to_yaml
from raycap.recipe.sections import (
    CaptionerRecipe,
    ClipModelRecipe,
    ClipRecipe,
    ClipTrainRecipe,
    ClusterRecipe,
    DataRecipe,
    EvaluateRecipe,
    FeaturesRecipe,
    GridWindow,
    LoggingRecipe,
    MLEContinuedRecipe,
    MLERecipe,
    RewardRecipe,
    ScenesRecipe,
    ScheduleRecipe,
    SCSTRecipe,
    Section,
    VocabularyRecipe,
)
from raycap.recipe.whole import Recipe

__all__ = [
    "CaptionerRecipe",
    "ClipModelRecipe",
    "ClipRecipe",
    "ClipTrainRecipe",
    "ClusterRecipe",
    "DataRecipe",
    "EvaluateRecipe",
    "FeaturesRecipe",
    "GridWindow",
    "LoggingRecipe",
    "MLEContinuedRecipe",
    "MLERecipe",
    "Recipe",
    "RewardRecipe",
    "SCSTRecipe",
    "ScenesRecipe",
    "ScheduleRecipe",
    "Section",
    "VocabularyRecipe",
    "list_recipes",
    "load_recipe",
    "to_yaml",
]
