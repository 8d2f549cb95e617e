"""CLIP behind one small face: unit embeddings of pictures and captions, and the image tower's grid.

Any open_clip model name with a tag or a local file, and raycap's own small configs (`raycap/models/configs`), which
`raycap.train.clip` trains with open_clip's model class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raycap.errors import CheckpointError, RecipeError
from raycap.models.loading import UNREADABLE
from raycap.recipe import ClipModelRecipe

WEIGHTS, ABOUT = "clip.pt", "clip.json"
_REMEDY = "run the stage `clip` again, or take an export of the captioner: it brings its CLIPs"
_CONFIGS = Path(__file__).parent / "configs"


def _open_clip() -> Any:
    import open_clip

    if "raycap-scenes-reward" not in open_clip.list_models():
        open_clip.add_model_config(_CONFIGS)
    return open_clip


def shipped_config(model: str) -> dict[str, Any] | None:
    """The config that raycap ships under this name; None for a model of open_clip's own."""
    file = _CONFIGS / f"{model}.json"
    return json.loads(file.read_text()) if file.exists() else None


class Clip:
    """A frozen CLIP.

    Args:
        name: open_clip model name, with the tag after a slash where there is one; it goes into metric signatures.
        prompt: put before every caption (CLIPScore, Hessel et al. 2021, uses "A photo depicts ").
    """

    def __init__(self, name: str, model: Any, transform: Any, tokenizer: Any, prompt: str, device: str) -> None:
        self.name, self.prompt, self.device = name, prompt, device
        self.model, self.transform, self.tokenizer = model.to(device).eval().requires_grad_(False), transform, tokenizer

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float32 [N, 3, H, W], resized and normalised as the model was trained."""
        return torch.stack([self.transform(picture) for picture in pictures]).to(self.device)

    @torch.inference_mode()
    def embed_pixels(self, pixels: Tensor) -> NDArray[np.float32]:
        """Unit embeddings float32 [N, D] of prepared pictures."""
        return self.model.encode_image(pixels, normalize=True).float().cpu().numpy()

    def embed_images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Unit embeddings float32 [N, D]."""
        return self.embed_pixels(self.pixels(pictures))

    @torch.inference_mode()
    def embed_texts(self, captions: Sequence[str], batch_size: int = 256) -> NDArray[np.float32]:
        """Unit embeddings float32 [N, D] of the captions behind the prompt; over-long ones are cut by the tokenizer."""
        parts = []
        for start in range(0, len(captions), batch_size):
            texts = [self.prompt + caption for caption in captions[start : start + batch_size]]
            tokens = self.tokenizer(texts).to(self.device)
            parts.append(self.model.encode_text(tokens, normalize=True).float().cpu().numpy())
        width = self.model.text_projection.shape[-1] if not parts and hasattr(self.model, "text_projection") else 0
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)

    @torch.inference_mode()
    def grid(self, pixels: Tensor) -> Tensor:
        """The image tower's last layer before pooling: float32 [N, D, h, w]."""
        tower = self.model.visual
        out = tower.forward_intermediates(pixels, indices=1, intermediates_only=True, normalize_intermediates=True)
        return out["image_intermediates"][-1].float()


def model_config(model: str) -> dict[str, Any]:
    """What open_clip builds under this name today; a trained CLIP's folder keeps it, for the day it means another."""
    return dict(_open_clip().get_model_config(model))


def check_clip_name(model: str, pretrained: str | None, *, key: str = "clip") -> None:
    """Whether there are such a model and such weights, as far as that can be said without loading them.

    Args:
        pretrained: a tag or a file; None where it will be trained.
        key: what errors call it.

    Raises:
        RecipeError: see `load_clip`.
    """
    if pretrained is None and shipped_config(model) is not None:
        return
    open_clip = _open_clip()
    if model not in open_clip.list_models():
        raise RecipeError("no such open_clip model", key=f"{key}.model", value=model,
                          remedy="see open_clip.list_models(), or raycap/models/configs")  # fmt: skip
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is not None and not Path(pretrained).exists() and pretrained not in tags:
        raise RecipeError("neither a file nor a tag that open_clip knows for this model", key=f"{key}.pretrained",
                          value=pretrained, remedy=f"tags: {', '.join(tags) or 'none'}")  # fmt: skip


def wants_quick_gelu(model: str, tag: str) -> bool:
    """Whether open_clip must be told that the weights of a tag were trained with QuickGELU.

    Left alone, open_clip builds the model with the config's activation, warns, and gives other embeddings.

    Raises:
        RecipeError: the model has QuickGELU and the weights were trained without.
    """
    has = bool(model_config(model).get("quick_gelu", False))
    wants = bool(_open_clip().get_pretrained_cfg(model, tag).get("quick_gelu", False))
    if has and not wants:
        raise RecipeError("these weights were trained without QuickGELU, which this model has", key="clip.model",
                          value=f"{model}/{tag}", remedy=f"take {model.removesuffix('-quickgelu')}")  # fmt: skip
    return wants and not has


def load_clip(
    model: str, pretrained: str, *, prompt: str, device: str = "cpu", config: Mapping[str, Any] | None = None
) -> Clip:
    """A CLIP by open_clip name and tag, or by name and local weights file.

    Weights of a tag that were trained with QuickGELU (OpenAI's) get it, whatever the model's config says. A file does
    not tell: OpenAI's needs the name that ends in `-quickgelu`.

    Args:
        config: the model's own, where it is not what open_clip builds under the name.

    Raises:
        RecipeError: no such model or tag, weights that are neither here nor to be had, or weights of a tag for another
            activation than the model's.
    """
    open_clip = _open_clip()
    check_clip_name(model, pretrained)
    is_file = Path(pretrained).exists()
    options = dict(config or {})
    if not is_file and wants_quick_gelu(model, pretrained):
        options["force_quick_gelu"] = True
    try:
        built, _, transform = open_clip.create_model_and_transforms(model, pretrained=pretrained, **options)
    except UNREADABLE as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RecipeError(f"its weights cannot be loaded: {why}", key="clip.pretrained",
                          value=f"{model}/{pretrained}", remedy="give a local weights file, or run where the hub is "
                          "reachable") from error  # fmt: skip
    name = f"{model}/{Path(pretrained).stem if is_file else pretrained}"
    length = config["text_cfg"]["context_length"] if config else None
    tokenizer = open_clip.get_tokenizer(model, context_length=length)
    return Clip(name, built, transform, tokenizer, prompt, device)


def new_clip(model: str, prompt: str, device: str = "cpu") -> Clip:
    """A CLIP with random weights (from torch's global generator), to be trained."""
    open_clip = _open_clip()
    try:
        built, _, transform = open_clip.create_model_and_transforms(model)
    except RuntimeError as error:
        raise RecipeError(str(error), key="clip.model", value=model) from error
    return Clip(model, built, transform, open_clip.get_tokenizer(model), prompt, device)


def fill_clip(folder: Path, clip: Clip, about: dict[str, Any]) -> None:
    """Write a trained CLIP's files into a folder."""
    torch.save(clip.model.state_dict(), folder / WEIGHTS)
    told = {"model": clip.name, "prompt": clip.prompt, "config": model_config(clip.name), "digest": _digest(clip.model)}
    (folder / ABOUT).write_text(json.dumps({**told, **about}))


def _digest(model: torch.nn.Module) -> str:
    """Of all weights: the same in every file format."""
    found = blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def clip_digest(folder: Path) -> str | None:
    """What tells a trained CLIP from another one of the same name; None where its folder does not say."""
    try:
        digest = json.loads((folder / ABOUT).read_text()).get("digest")
    except (OSError, ValueError, AttributeError):
        return None
    return str(digest) if digest else None


def load_trained_clip(folder: Path, device: str = "cpu") -> Clip:
    """A CLIP from a folder that `fill_clip` wrote.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        model, prompt, trained_on = about["model"], about["prompt"], about["trained_on"]
        weights = folder / about.get("weights", WEIGHTS)  # an export has safetensors
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"holds no trained CLIP (no {ABOUT} that can be read)", key="clip", value=str(folder),
                              remedy=_REMEDY) from error  # fmt: skip
    try:
        clip = load_clip(model, str(weights), prompt=prompt, device=device, config=about.get("config"))
    except RecipeError as error:
        raise CheckpointError(f"cannot be loaded: {error.what}", key="clip", value=str(weights),
                              remedy=_REMEDY) from error  # fmt: skip
    clip.name = f"{model}/{trained_on}"
    return clip


def clip_of(recipe: ClipModelRecipe, trained: Path | None, device: str = "cpu") -> Clip:
    """The CLIP that a recipe names: from the folder where it was trained here, or pretrained.

    Raises:
        CheckpointError, RecipeError: see `load_trained_clip` and `load_clip`.
    """
    if recipe.pretrained != "train":
        return load_clip(recipe.model, recipe.pretrained, prompt=recipe.prompt, device=device)
    if trained is None:
        raise CheckpointError("was trained in a run, and this checkpoint does not say where", key="clip",
                              value=recipe.model, remedy="use `raycap export`, which takes it along")  # fmt: skip
    return load_trained_clip(trained, device)
