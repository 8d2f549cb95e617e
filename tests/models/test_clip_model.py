"""The two small CLIPs that raycap brings, behind the face that rewards, judges and encoders use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycap.errors import CheckpointError, RecipeError
from raycap.models.clip import (
    ABOUT,
    WEIGHTS,
    Clip,
    clip_of,
    fill_clip,
    load_clip,
    load_trained_clip,
    model_config,
    new_clip,
)
from raycap.recipe import ClipModelRecipe

CAPTIONS = ["a red ball", "a blue box on the left", "two green stars"]


def pictures(size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    """A coloured square on a ground of another colour."""
    made = []
    for number, ground in enumerate([(255, 0, 0), (0, 200, 0), (30, 30, 250), (0, 0, 0), (255, 255, 255)]):
        picture = Image.new("RGB", size, ground)
        picture.paste((250, 250, 0), (4 * number, 5, 4 * number + 9, 14))
        made.append(picture)
    return made


@pytest.fixture(scope="module", params=["raycap-scenes-reward", "raycap-scenes-judge"])
def clip(request: pytest.FixtureRequest) -> Clip:
    torch.manual_seed(0)
    return new_clip(request.param, "A photo depicts ")


def test_embeddings_are_unit_vectors_and_tell_inputs_apart(clip: Clip) -> None:
    for embedded in (clip.embed_images(pictures()), clip.embed_texts(CAPTIONS)):
        assert embedded.dtype == np.float32
        assert embedded.shape == (len(embedded), 128)
        np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-6)
        others = embedded @ embedded.T - np.eye(len(embedded))
        assert others.max() < 1 - 1e-4


def test_embeddings_do_not_depend_on_the_batch(clip: Clip) -> None:
    whole = clip.embed_texts(CAPTIONS)
    np.testing.assert_allclose(clip.embed_texts(CAPTIONS, batch_size=2), whole, atol=1e-6)
    np.testing.assert_allclose(clip.embed_texts(CAPTIONS[::-1]), whole[::-1], atol=1e-6)
    shown = pictures()
    np.testing.assert_allclose(clip.embed_images(shown[3:4])[0], clip.embed_images(shown)[3], atol=1e-5)
    assert clip.embed_texts([]).shape == (0, 128)


def test_the_prompt_stands_before_every_caption(clip: Clip) -> None:
    bare = Clip(clip.name, clip.model, clip.transform, clip.tokenizer, "", clip.device)
    np.testing.assert_array_equal(bare.embed_texts(["A photo depicts a red ball"]), clip.embed_texts(["a red ball"]))
    assert np.abs(bare.embed_texts(["a red ball"]) - clip.embed_texts(["a red ball"])).max() > 1e-3


def test_captions_longer_than_the_context_are_cut_and_pooled_at_their_end(clip: Clip) -> None:
    long = "a red ball " * 40
    embedded = clip.embed_texts([long, long + "and a dog", "a red ball"])
    assert np.isfinite(embedded).all()
    np.testing.assert_array_equal(embedded[0], embedded[1])
    assert np.abs(embedded[0] - embedded[2]).max() > 1e-4


def test_pictures_of_any_size_and_mode_are_prepared(clip: Clip) -> None:
    for picture in (Image.new("L", (7, 200)), Image.new("RGBA", (64, 64)), Image.new("RGB", (1, 1))):
        pixels = clip.pixels([picture.convert("RGB")])
        assert pixels.shape == (1, 3, 64, 64)
        assert bool(torch.isfinite(clip.grid(pixels)).all())


def test_the_model_is_frozen(clip: Clip) -> None:
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())


def test_a_trained_clip_comes_back_from_its_folder(clip: Clip, tmp_path: Path) -> None:
    fill_clip(tmp_path, clip, {"trained_on": "scenes", "recall_at_1": 0.5})
    torch.manual_seed(5)
    again = load_trained_clip(tmp_path)
    assert again.name == f"{clip.name}/scenes"
    assert again.prompt == clip.prompt
    np.testing.assert_array_equal(again.embed_images(pictures()), clip.embed_images(pictures()))
    np.testing.assert_array_equal(again.embed_texts(CAPTIONS), clip.embed_texts(CAPTIONS))


def test_weights_of_another_model_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "config": model_config("raycap-scenes-judge")}))
    with pytest.raises(CheckpointError, match="cannot be loaded") as refused:
        load_trained_clip(tmp_path)
    assert refused.value.value == str(tmp_path / WEIGHTS)


@pytest.mark.parametrize("size", [0, 1000, -7, None])
def test_damaged_weights_are_a_checkpoint_error(clip_folder: Path, tmp_path: Path, size: int | None) -> None:
    shutil.copy(clip_folder / ABOUT, tmp_path / ABOUT)
    if size is not None:
        (tmp_path / WEIGHTS).write_bytes((clip_folder / WEIGHTS).read_bytes()[:size])
    with pytest.raises(CheckpointError, match="stage `clip`") as refused:
        load_trained_clip(tmp_path)
    assert (refused.value.key, refused.value.value) == ("clip", str(tmp_path / WEIGHTS))


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"model": "ViT-B-32"}'])
def test_a_folder_without_a_trained_clip_is_a_checkpoint_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / ABOUT).write_text(content)
    with pytest.raises(CheckpointError, match="holds no trained CLIP"):
        load_trained_clip(tmp_path)


def test_unknown_models_and_tags_are_refused_before_anything_is_fetched() -> None:
    with pytest.raises(RecipeError, match=r"clip.model = 'ViT-L-15'"):
        load_clip("ViT-L-15", "openai", prompt="")
    with pytest.raises(RecipeError, match=r"clip.model = 'ViT-L-15'|ViT-L-15"):
        new_clip("ViT-L-15", "")
    with pytest.raises(RecipeError, match=r"clip.pretrained = 'opanai'.*openai"):
        load_clip("ViT-L-14", "opanai", prompt="")


@pytest.mark.parametrize(
    ("model", "tag", "forced"),
    [
        ("ViT-B-32", "openai", True), ("ViT-B-32-quickgelu", "openai", False), ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("RN50", "openai", True),
    ],
)  # fmt: skip
def test_weights_get_the_activation_they_were_trained_with(
    model: str, tag: str, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip only warns, and every score is another one."""
    import open_clip

    asked: dict[str, object] = {}

    def create(name: str, **options: object) -> tuple[torch.nn.Module, None, None]:
        asked.update(options)
        return torch.nn.Identity(), None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    load_clip(model, tag, prompt="")
    assert asked == {"pretrained": tag, **({"force_quick_gelu": True} if forced else {})}


def test_weights_trained_without_quick_gelu_are_refused_by_a_model_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["plain"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {})
    with pytest.raises(RecipeError, match=r"trained without QuickGELU.*take ViT-B-32"):
        load_clip("ViT-B-32-quickgelu", "plain", prompt="")


def test_a_recipe_names_a_trained_clip_or_a_file(clip_folder: Path, tmp_path: Path) -> None:
    trained = clip_of(ClipModelRecipe(model="raycap-scenes-reward"), clip_folder)
    file = tmp_path / "mine.pt"
    shutil.copy(clip_folder / WEIGHTS, file)
    from_file = clip_of(ClipModelRecipe(model="raycap-scenes-reward", pretrained=str(file), prompt="see "), None)
    assert (trained.name, from_file.name) == ("raycap-scenes-reward/nothing", "raycap-scenes-reward/mine")
    assert (trained.prompt, from_file.prompt) == ("A photo depicts ", "see ")
    np.testing.assert_array_equal(trained.embed_images(pictures()), from_file.embed_images(pictures()))
    with pytest.raises(CheckpointError, match="does not say where"):
        clip_of(ClipModelRecipe(model="raycap-scenes-reward"), None)


def names(found: Sequence[str]) -> list[str]:
    return [name for name in found if name.startswith("raycap-")]


def test_raycap_s_configs_are_registered_once() -> None:
    import open_clip

    new_clip("raycap-scenes-reward", "")
    assert sorted(names(open_clip.list_models())) == ["raycap-scenes-judge", "raycap-scenes-reward"]
