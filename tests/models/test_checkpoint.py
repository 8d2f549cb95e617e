"""Captioners on disk: what is saved is what comes back, whole or not at all, and damage is named."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raycap.decoding.sample import generate
from raycap.errors import CheckpointError
from raycap.models import checkpoint
from raycap.models.checkpoint import (
    CONFIG,
    WEIGHTS,
    find_captioner,
    load_captioner,
    read_about,
    recover_folder,
    save_captioner,
    write_folder,
)
from raycap.models.prefix import PrefixCaptioner
from raycap.models.tokenizer import FILE, HFTokenizer, WordTokenizer

MakeCaptioner = Callable[..., PrefixCaptioner]
WORDS = WordTokenizer(["a", "red", "dog", "runs", "there"])
CASES: dict[str, dict[str, Any]] = {
    "gpt2-grid": {},
    "llama-mlp-frozen": {"lm": "llama", "mapping": "mlp", "features": "pooled", "lm_tuning": "frozen"},
    "gpt2-transformer-untied": {"mapping": "transformer", "lm_config": {"tie_word_embeddings": False}},
}


def pictures(captioner: PrefixCaptioner, count: int = 6) -> Tensor:
    shape = [8] if captioner.config.features == "pooled" else [4, 8]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(4))


def same(one: PrefixCaptioner, two: PrefixCaptioner) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def saved(tmp_path: Path, make_captioner: MakeCaptioner) -> Path:
    save_captioner(tmp_path / "best", make_captioner(tokenizer=WORDS), {"step": 7})
    return tmp_path / "best"


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path, make_captioner: MakeCaptioner, case: str) -> None:
    captioner = make_captioner(tokenizer=WORDS, **CASES[case])
    save_captioner(tmp_path / "best", captioner, {"step": 7, "encoder": "timm:x"})
    torch.manual_seed(99)  # the random start of the loaded one must not matter
    again = load_captioner(tmp_path / "best")
    assert same(captioner, again)
    assert again.config == captioner.config
    assert not again.training
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in captioner.parameters()]
    options: dict[str, Any] = {"num_samples": 2, "greedy": True, "max_length": 6, "seed": 3}
    before, after = (generate(c, pictures(captioner), **options) for c in (captioner, again))
    assert (before.captions, before.greedy_captions) == (after.captions, after.greedy_captions)
    assert len(set(before.captions)) > 3
    assert (before.behavior_logprobs == after.behavior_logprobs).all()
    assert read_about(tmp_path / "best") == {"step": 7, "encoder": "timm:x"}


def test_a_tied_head_stays_tied(saved: Path) -> None:
    lm: Any = load_captioner(saved).lm
    assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight


def test_bpe_travels_with_the_captioner(tmp_path: Path, make_captioner: MakeCaptioner) -> None:
    bpe = HFTokenizer.train_bpe(["a red dog runs", "a café there"], vocab_size=280)
    save_captioner(tmp_path / "best", make_captioner(tokenizer=bpe), {})
    again = load_captioner(tmp_path / "best").tokenizer
    assert again.decode(again.encode("a red café dog")) == "a red café dog"
    assert again.vocab_size == bpe.vocab_size


def test_a_frozen_pretrained_lm_is_not_stored_again_but_a_tuned_one_is(
    tmp_path: Path, make_captioner: MakeCaptioner
) -> None:
    bpe = HFTokenizer.train_bpe(["a red dog runs"], vocab_size=270)
    lm: Any = make_captioner(tokenizer=bpe).lm
    lm.save_pretrained(tmp_path / "lm")
    bpe.inner.save_pretrained(tmp_path / "lm")
    sizes = {}
    for tuning in ("frozen", "full"):
        captioner = make_captioner(tokenizer=bpe, lm_source=str(tmp_path / "lm"), lm_tuning=tuning)
        captioner.lm.load_state_dict(lm.state_dict())
        save_captioner(tmp_path / tuning, captioner, {})
        assert same(captioner, load_captioner(tmp_path / tuning))
        sizes[tuning] = (tmp_path / tuning / WEIGHTS).stat().st_size
    assert 3 * sizes["frozen"] < sizes["full"]


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(
    saved: Path, make_captioner: MakeCaptioner
) -> None:
    (saved / "stale").write_text("of the old one")
    newer = make_captioner(tokenizer=WORDS, seed=1)
    save_captioner(saved, newer, {"step": 8})
    assert same(load_captioner(saved), newer)
    assert [path.name for path in saved.parent.iterdir()] == ["best"]
    assert not (saved / "stale").exists()


@pytest.mark.parametrize("where", ["captioner", "tokenizer", "fsync", "first rename", "second rename"])
def test_an_interrupted_write_leaves_the_old_one(
    saved: Path, make_captioner: MakeCaptioner, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    old, newer = load_captioner(saved), make_captioner(tokenizer=WORDS, seed=1)
    renames = []
    plain_rename = Path.rename

    def rename(self: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == (1 if where == "first rename" else 2):
            raise OSError("no space left on device")
        return plain_rename(self, target)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as planted:
        if where == "captioner":
            planted.setattr(checkpoint, "save_file", fail)
        elif where == "tokenizer":
            planted.setattr(WordTokenizer, "save", fail)
        elif where == "fsync":
            planted.setattr(checkpoint.os, "fsync", fail)
        else:
            planted.setattr(Path, "rename", rename)
        with pytest.raises(OSError if "rename" in where else KeyboardInterrupt):
            save_captioner(saved, newer, {"step": 8})
    assert same(load_captioner(saved), old)
    assert read_about(saved) == {"step": 7}
    assert [path.name for path in saved.parent.iterdir()] == ["best"]
    save_captioner(saved, newer, {"step": 8})
    assert same(load_captioner(saved), newer)


def test_a_process_killed_between_the_renames_loses_nothing(saved: Path, make_captioner: MakeCaptioner) -> None:
    """What SIGKILL leaves there: the old folder under its hidden name, the new one under its temporary name."""
    old = load_captioner(saved)
    hidden = saved.with_name(".best.4711.old")
    saved.rename(hidden)
    recover_folder(saved)
    assert same(load_captioner(saved), old)
    shutil.copytree(saved, hidden)  # and one behind the second rename: the new one stands
    save_captioner(saved, make_captioner(tokenizer=WORDS, seed=1), {"step": 8})
    assert read_about(saved) == {"step": 8}
    assert not hidden.exists()


def test_a_first_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        write_folder(tmp_path / "deep" / "best", fill)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_truncated_weights_are_named_with_a_remedy(saved: Path, size: int) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[:size])
    with pytest.raises(CheckpointError, match="cannot be read") as refused:
        load_captioner(saved)
    assert (refused.value.key, refused.value.value) == ("checkpoint", str(saved / WEIGHTS))
    assert "the checkpoint before it" in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_missing_file_is_named(saved: Path, tmp_path: Path) -> None:
    for name in (WEIGHTS, CONFIG, FILE):
        broken = tmp_path / f"without-{name}"
        shutil.copytree(saved, broken)
        (broken / name).unlink()
        with pytest.raises(CheckpointError) as refused:
            load_captioner(broken)
        assert name in str(refused.value)
        assert str(broken) in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"config": {}}', '{"about": null}'])
def test_a_broken_config_is_no_captioner(saved: Path, content: str) -> None:
    (saved / CONFIG).write_text(content)
    for read in (load_captioner, read_about):
        with pytest.raises(CheckpointError, match="holds no captioner") as refused:
            read(saved)
        assert refused.value.remedy


def test_a_storage_that_does_not_answer_says_nothing_of_the_captioner(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(self: Path, *given: Any, **named: Any) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "read_text", stale)
    for read in (load_captioner, read_about):
        with pytest.raises(OSError, match="Stale file handle") as raised:
            read(saved)
        assert raised.value.errno == errno.ESTALE


def test_a_file_where_a_folder_should_be_holds_no_captioner(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no captioner"):
        read_about(saved / CONFIG)


def edit_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["config"] |= changes
    (folder / CONFIG).write_text(json.dumps(content))


def test_a_config_of_another_version_is_a_checkpoint_error(saved: Path) -> None:
    edit_config(saved, attention="flash")
    with pytest.raises(CheckpointError, match=r"this version of raycap.*attention") as refused:
        load_captioner(saved)
    assert refused.value.value == str(saved / CONFIG)
    (saved / CONFIG).write_text('{"about": {}}')
    with pytest.raises(CheckpointError, match="this version"):
        load_captioner(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_dim": 9}, r"mapping\.\w+\.\w+ has shape \(.*8.*\), expected \(.*9.*\)"),
        ({"mapping": "mlp"}, "its tensors do not fit its config, for example .*mapping.layers"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(saved, **changes)
    with pytest.raises(CheckpointError, match=message) as refused:
        load_captioner(saved)
    assert refused.value.value == str(saved / WEIGHTS)


def test_a_vocabulary_of_another_size_is_refused(saved: Path) -> None:
    WordTokenizer([*WORDS.words, "more"]).save(saved)
    with pytest.raises(CheckpointError, match=r"expected \(9, 16\)"):
        load_captioner(saved)


def test_a_captioner_is_found_in_a_stage_a_checkpoint_or_an_export(saved: Path) -> None:
    assert find_captioner(saved) == saved
    assert find_captioner(saved.parent) == saved
    for nothing in (saved.parent / "nowhere", saved / WEIGHTS):
        with pytest.raises(CheckpointError) as refused:
            find_captioner(nothing)
        assert (refused.value.key, refused.value.value) == ("checkpoint", str(nothing))
        assert "STORAGE/NAME/scst" in str(refused.value)
