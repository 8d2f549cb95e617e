"""A small CLIP on tiny pictures: the loss falls, the same seed makes the same weights, what is held out stays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from raycap.errors import DataError, WorkFailed
from raycap.models.clip import Clip, load_trained_clip, new_clip
from raycap.recipe import ClipModelRecipe, ClipTrainRecipe
from raycap.train.clip import _load, _optimizer, _recall, _shifted, train_clip

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "yellow": (230, 220, 40)}
SIDES = {"left": 2, "right": 20}
MODEL = ClipModelRecipe(model="raycap-scenes-reward", seed=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A coloured box on the left or the right of a grey ground; two of each."""
    folder, paths = tmp_path_factory.mktemp("pictures"), {}
    for name, colour in COLOURS.items():
        for side, place in SIDES.items():
            for number in range(2):
                picture = Image.new("RGB", (32, 32), (128, 128, 128))
                picture.paste(colour, (place, 8 + 6 * number, place + 9, 19 + 6 * number))
                paths[f"{name}-{side}-{number}"] = folder / f"{name}-{side}-{number}.png"
                picture.save(paths[f"{name}-{side}-{number}"])
    return paths


def captions(pictures: Mapping[str, Path], number: str) -> dict[str, tuple[str, ...]]:
    found = {}
    for image_id in pictures:
        colour, side, mine = image_id.split("-")
        if mine == number:
            found[image_id] = (f"a {colour} box on the {side}", f"on the {side} there is a {colour} box")
    return found


def train(pictures: Mapping[str, Path], folder: Path, model: ClipModelRecipe = MODEL, **given: Any) -> tuple[Any, Any]:
    log: list[dict[str, Any]] = []
    recipe = ClipTrainRecipe(**{"epochs": 25, "batch_size": 8, "lr": 1e-3, **given})
    figures = train_clip(
        folder, pictures, captions(pictures, "0"), captions(pictures, "1"), model, recipe, trained_on="boxes",
        max_pixels=10_000, log=lambda record: log.append(dict(record)),
    )  # fmt: skip
    return figures, log


@pytest.fixture(scope="module")
def trained(pictures: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("runs") / "clip" / "reward"
    return folder, *train(pictures, folder)


def test_the_loss_falls_and_every_epoch_is_logged(trained: tuple[Path, Any, Any]) -> None:
    _, figures, log = trained
    assert [(record["step"], record["epoch"], record["total_steps"]) for record in log] == [
        (n, n, 25) for n in range(1, 26)
    ]
    losses = [record["loss"] for record in log]
    assert losses[0] == pytest.approx(np.log(8), rel=0.5)
    assert losses[-1] < 0.7 * losses[0]
    assert figures["recall_at_5"] > 5 / 8, "better than chance on what it has not seen"
    assert figures["recall_at_5"] >= figures["recall_at_1"]
    assert {k: v for k, v in figures.items() if k != "seconds"} == {
        k: v for k, v in log[-1].items() if k.startswith("recall")
    }


def test_what_is_written_is_the_trained_clip(trained: tuple[Path, Any, Any], pictures: dict[str, Path]) -> None:
    folder, figures, _ = trained
    clip = load_trained_clip(folder)
    assert clip.name == "raycap-scenes-reward/boxes"
    held_out = captions(pictures, "1")
    shown = _load(clip, [pictures[i] for i in sorted(held_out)], 10_000)
    again = _recall(clip, shown, [held_out[i][0] for i in sorted(held_out)])
    assert again == {name: figures[name] for name in ("recall_at_1", "recall_at_5")}
    assert [path.name for path in folder.parent.iterdir()] == ["reward"]


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_trained_clip(folder).model.state_dict())


def test_a_seed_makes_the_same_clip_and_another_one_another(pictures: dict[str, Path], tmp_path: Path) -> None:
    others = {"same": MODEL, "again": MODEL, "other": MODEL.model_copy(update={"seed": 5})}
    for name, model in others.items():
        train(pictures, tmp_path / name, model, epochs=2, batch_size=4)
        torch.rand(3)
    same, again, other = (weights(tmp_path / name) for name in others)
    assert all(torch.equal(same[name], again[name]) for name in same)
    assert not torch.equal(same["visual.conv1.weight"], other["visual.conv1.weight"])


def test_pictures_that_are_held_out_are_not_learned_from(pictures: dict[str, Path], tmp_path: Path) -> None:
    """Other captions for the held-out pictures change figures, and no weight."""
    recipe = ClipTrainRecipe(epochs=1, batch_size=8)
    for name, said in (("one", "a box"), ("two", "something else")):
        held_out = dict.fromkeys(captions(pictures, "1"), (said,))
        train_clip(tmp_path / name, pictures, captions(pictures, "0"), held_out, MODEL, recipe, trained_on="x",
                   max_pixels=10_000, log=lambda record: None)  # fmt: skip
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_nothing_held_out_and_nothing_to_learn_from(pictures: dict[str, Path], tmp_path: Path) -> None:
    options: Any = {"trained_on": "x", "max_pixels": 10_000, "log": lambda record: None}
    recipe = ClipTrainRecipe(epochs=1, batch_size=64)
    figures = train_clip(tmp_path / "a", pictures, captions(pictures, "0"), {}, MODEL, recipe, **options)
    assert list(figures) == ["seconds"]
    with pytest.raises(DataError, match="no captioned image") as refused:
        train_clip(tmp_path / "b", pictures, {}, {}, MODEL, recipe, **options)
    assert refused.value.key == "clip"
    assert not (tmp_path / "b").exists()


def test_decay_is_on_matrices_that_are_no_embeddings() -> None:
    clip = new_clip("raycap-scenes-reward", "")
    optimizer = _optimizer(clip, ClipTrainRecipe(weight_decay=0.3))
    names = {id(p): name for name, p in clip.model.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert sorted([*decayed, *plain]) == sorted(names.values())
    assert {"logit_scale", "token_embedding.weight", "positional_embedding"} <= set(plain)
    assert not [name for name in decayed if "embedding" in name or name.endswith("bias")]


def test_shifted_pictures_by_hand() -> None:
    pixels = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(2, 3, 4, 4)

    class Draw:
        def integers(self, low: int, high: int, size: tuple[int, int]) -> Any:
            assert (low, high, size) == (0, 3, (2, 2))
            return np.array([[0, 2], [1, 1]])

    draw: Any = Draw()
    moved = _shifted(pixels.half(), 1, draw)
    assert moved.dtype == torch.float32
    assert torch.equal(moved[1], pixels[1]), "the middle place is no move"
    # one row down (the first repeated), one column left (the last repeated)
    expected = torch.cat([pixels[0][:, :1], pixels[0][:, :3]], dim=1)
    expected = torch.cat([expected[:, :, 1:], expected[:, :, 3:]], dim=2)
    assert torch.equal(moved[0], expected)
    assert torch.equal(_shifted(pixels.half(), 0, draw), pixels)


def test_recall_by_hand() -> None:
    """Seven pictures: the first caption is nearest to its own, the second to all but one, the others far."""
    images = np.eye(7, dtype=np.float32)
    texts = np.eye(7, dtype=np.float32)[[0, 2, 1, 3, 4, 5, 6]]
    texts[6] = -images[6]

    class Fake:
        device = "cpu"

        def embed_pixels(self, pixels: Tensor) -> Any:
            return images[pixels[:, 0, 0, 0].long().numpy()]

        def embed_texts(self, captions: Any) -> Any:
            return texts

    clip: Any = Fake()
    shown = torch.arange(7).view(7, 1, 1, 1).half()
    got = _recall(clip, shown, ["x"] * 7)
    # four are first; two are one of six equal ones behind the first; of the last all others are better, 0 against −1
    assert got == {"recall_at_1": pytest.approx(4 / 7), "recall_at_5": pytest.approx((4 + 2 * 4 / 6) / 7)}
    assert _recall(clip, shown[:0], []) == {}
    texts[3] = np.nan
    with pytest.raises(WorkFailed, match=r"NaN or infinity.*lower clip\.train\.lr"):
        _recall(clip, shown, ["x"] * 7)
    texts[:] = texts[0]
    assert _recall(clip, shown, ["x"] * 7)["recall_at_1"] == pytest.approx(1 / 7), "captions that say nothing: chance"


def test_pictures_are_loaded_as_the_model_takes_them(pictures: dict[str, Path]) -> None:
    clip: Clip = new_clip("raycap-scenes-reward", "")
    loaded = _load(clip, list(pictures.values()), 10_000)
    assert (loaded.shape, loaded.dtype) == ((16, 3, 64, 64), torch.float16)
    with pytest.raises(DataError, match="more than 100"):
        _load(clip, list(pictures.values()), 100)


def test_a_loss_that_is_not_finite_ends_the_training_and_leaves_no_clip(
    pictures: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.nn.Module):
        def forward(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
            return (image * text).sum() * torch.nan

    monkeypatch.setattr("open_clip.loss.ClipLoss", Broken)
    with pytest.raises(WorkFailed, match=r"step 0 is not finite.*clip\.train\.lr"):
        train(pictures, tmp_path / "clip", epochs=1)
    assert not (tmp_path / "clip").exists()
