"""A captioner as a plain folder: safetensors, its config, its tokenizer. Written whole or not at all.

Of a pretrained LM that stays as it came (frozen, or with adapters beside it) the weights are not stored again: the
config names it, and a digest of it says whether what is found there later is still the same. `raycap export` makes a
folder that has everything.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raycap.errors import CheckpointError
from raycap.models.build import lm_from_pretrained, lm_from_scratch
from raycap.models.loading import UNREADABLE
from raycap.models.lora import is_adapter
from raycap.models.prefix import PrefixCaptioner, PrefixConfig
from raycap.models.tokenizer import load_tokenizer

WEIGHTS, CONFIG = "model.safetensors", "captioner.json"
_REMEDY = "take the checkpoint before it, or train the stage again"


_TORCH_WRITES = "inline_container.cc"
"""What torch says when a file cannot be written to its end: where in its own code that was."""


@contextmanager
def as_os_error(folder: Path) -> Iterator[None]:
    """Inside, what torch or safetensors cannot write in a folder is an OSError, with the number that they hide."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _TORCH_WRITES not in str(error):
            raise
        with open(folder / ".probe", "wb") as probe:  # what was written so far is still there: a full disk is full
            probe.write(bytes(1 << 20))
            probe.flush()
            os.fsync(probe.fileno())
        raise OSError(errno.EIO, str(error)[:300]) from error


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder atomically: `fill` writes into a temporary neighbour that is then renamed.

    A crash leaves either the old folder, or the new one, or a temporary neighbour that nobody reads; where it hits
    between the two renames, `recover_folder` puts the old one back.

    Raises:
        OSError: it cannot be written; the old folder is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(target)
    for left in target.parent.glob(f".{target.name}.*.tmp"):  # by a process that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        with as_os_error(temporary):
            fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        replace_folder(target, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(target: Path, by: Path) -> None:
    """Give a folder the place and name of another, whose old contents go."""
    try:
        if target.exists():
            target.rename(target.with_name(f".{target.name}.{os.getpid()}.old"))
        by.rename(target)
    finally:
        recover_folder(target)


def recover_folder(target: Path) -> None:
    """Finish a replacement that was cut between its renames: the old folder comes back where there is no new one."""
    for old in target.parent.glob(f".{target.name}.*.old"):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):  # somebody else was quicker
                old.rename(target)


def fill_captioner(folder: Path, captioner: PrefixCaptioner, about: dict[str, Any]) -> None:
    """Write a captioner's files into a folder. Of a pretrained LM only what was trained is stored."""
    kept = _stored_names(captioner)
    # clone: tied weights share memory, which safetensors refuses
    tensors = {name: value.detach().cpu().clone() for name, value in captioner.state_dict().items() if name in kept}
    save_file(tensors, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes it for its owner alone; other users may serve it
    captioner.tokenizer.save(folder)
    content = {"kind": "prefix", "config": captioner.config.to_dict(), "about": about}
    if _stands_on_another(captioner.config):
        content["lm_digest"] = _lm_digest(captioner)
    (folder / CONFIG).write_text(json.dumps(content))


def save_captioner(folder: Path, captioner: PrefixCaptioner, about: dict[str, Any]) -> None:
    """Write a captioner atomically. `about` says where it comes from (stage, step, encoder, figures)."""
    write_folder(folder, lambda temporary: fill_captioner(temporary, captioner, about))


def read_about(folder: Path) -> dict[str, Any]:
    """What `save_captioner` was told.

    Raises:
        CheckpointError: the folder holds no captioner, or a broken one.
        OSError: the storage does not answer, which says nothing of the captioner.
    """
    try:
        return dict(json.loads((folder / CONFIG).read_text())["about"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("holds no captioner, or a broken one", key="checkpoint", value=str(folder),
                              remedy=f"a captioner's folder has {CONFIG} and {WEIGHTS}") from error  # fmt: skip


def find_captioner(path: Path) -> Path:
    """The captioner's folder that a `--checkpoint` means: a stage's folder (its best), a checkpoint, or an export.

    Raises:
        CheckpointError: none of these; captioners that lie below are named.
    """
    for folder in (path, path / "best"):
        if (folder / CONFIG).is_file():
            return folder
    if not path.is_dir():
        what, below = "is a file and not a folder" if path.exists() else "no such folder", []
    else:
        what, below = f"holds no captioner: neither {CONFIG} nor best/{CONFIG} is there", _captioners_below(path)
    remedy = "give a stage's folder such as STORAGE/NAME/scst, a checkpoint in it, or an export"
    if below:
        remedy = f"did you mean {' or '.join(map(str, below[:4]))}?"
    raise CheckpointError(what, key="checkpoint", value=str(path), remedy=remedy)


def _captioners_below(path: Path) -> list[Path]:
    """What may have been meant by a run's folder, or by a stage that has no best checkpoint yet; newest first."""
    bests = [file.parent.parent for pattern in ("*/best", "*/*/best") for file in path.glob(f"{pattern}/{CONFIG}")]
    others = [file.parent for pattern in ("*", "checkpoints/*") for file in path.glob(f"{pattern}/{CONFIG}")]
    return sorted(dict.fromkeys(bests or others), key=lambda folder: folder.stat().st_mtime, reverse=True)


def load_captioner(folder: Path) -> PrefixCaptioner:
    """Rebuild a captioner from its folder, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, truncated, or its tensors do not fit the config; the pretrained LM that it
            stands on is another one by now.
        OSError: see `read_about`.
    """
    read_about(folder)
    try:
        content = json.loads((folder / CONFIG).read_text())
        config = PrefixConfig(**content["config"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"its config is not one that this version of raycap knows: {error}"
        raise CheckpointError(what, key="checkpoint", value=str(folder / CONFIG),
                              remedy="use the version that wrote it") from error  # fmt: skip
    tokenizer = load_tokenizer(folder)
    if config.lm_source:  # an export takes its LM along, in a folder inside its own
        inside = folder / config.lm_source
        lm, _ = lm_from_pretrained(str(inside) if inside.is_dir() else config.lm_source)
    else:
        lm, _ = lm_from_scratch(config.lm_config, tokenizer)
    captioner = PrefixCaptioner(config, lm, tokenizer)
    digest = content.get("lm_digest")  # older checkpoints have none
    if digest and digest != _lm_digest(captioner):
        raise CheckpointError("is not the LM that this checkpoint was trained on: its weights are others by now",
                              key="captioner.lm", value=config.lm_source,
                              remedy="put the LM back as it was; an export takes its own along")  # fmt: skip
    own = captioner.state_dict()
    with torch.no_grad():
        for name, value in stored_weights(folder, captioner).items():
            own[name].copy_(value)
    return captioner.eval()


def stored_weights(folder: Path, captioner: PrefixCaptioner) -> dict[str, torch.Tensor]:
    """What a captioner's folder holds for a captioner built like it, by name: of an LM that stays as it came nothing.

    Args:
        captioner: whole, or held in shards.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are others than the captioner's.
    """
    try:
        tensors = load_file(folder / WEIGHTS)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot be read: {error}", key="checkpoint", value=str(folder / WEIGHTS),
                              remedy=_REMEDY) from error  # fmt: skip
    own, expected = captioner.state_dict(), _stored_names(captioner)
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)[:3]
        raise CheckpointError(f"its tensors do not fit its config, for example {odd}", key="checkpoint",
                              value=str(folder / WEIGHTS), remedy=_REMEDY)  # fmt: skip
    for name, value in tensors.items():
        if own[name].shape != value.shape:
            raise CheckpointError(f"{name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}",
                                  key="checkpoint", value=str(folder / WEIGHTS), remedy=_REMEDY)  # fmt: skip
    return tensors


def _stands_on_another(config: PrefixConfig) -> bool:
    """Whether the LM is one that lies elsewhere, as it came."""
    return bool(config.lm_source) and config.lm_tuning != "full"


def _stored_names(captioner: PrefixCaptioner) -> set[str]:
    names = set(captioner.state_dict())
    if _stands_on_another(captioner.config):
        names = {name for name in names if not name.startswith("lm.") or is_adapter(name)}
    return names


_SAMPLED = 16  # numbers of each parameter


@torch.no_grad()
def _lm_digest(captioner: PrefixCaptioner) -> str:
    """Of some numbers of every parameter of the LM, adapters apart, in bfloat16: the same whatever type they are in."""
    digest = blake2b(digest_size=16)
    for name, parameter in captioner.lm.named_parameters():
        if not is_adapter(name):
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // _SAMPLED)].to(torch.bfloat16).float().cpu()
            digest.update(f"{list(parameter.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()
