"""Names of models that a recipe will need hours later, checked before anything is started.

What raycap's own recipes name is known to be there and costs no import; anything else is looked up in the library that
will load it. Weights are not loaded: a tag may still be out of reach.
"""

from __future__ import annotations

from raycap.recipe import Recipe

KNOWN_ENCODERS = ("clip.reward", "tf_efficientnet_lite0")


def check_models(recipe: Recipe) -> None:
    """Encoder, CLIPs and LM of the recipe's stages.

    Raises:
        RecipeError: there is no such model, tag, file or folder, or the LM is too short for prefix and caption.
    """
    from raycap.models.build import check_captioner
    from raycap.models.clip import check_clip_name
    from raycap.models.encoders import check_timm_name

    if "features" in recipe.stages and recipe.features.encoder not in KNOWN_ENCODERS:
        check_timm_name(recipe.features.encoder)
    for role in ("reward", "judge"):
        clip = getattr(recipe.clip, role)
        if clip is not None:
            weights = None if clip.pretrained == "train" else clip.pretrained
            check_clip_name(clip.model, weights, key=f"clip.{role}")
    if "mle" in recipe.stages:
        check_captioner(recipe.captioner, recipe.features.grid_size)
