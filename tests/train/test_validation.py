"""A look at `select`: greedy CIDEr-D and cross-entropy against the slow way; best checkpoint; collapse."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from raycap.decoding.sample import generate
from raycap.errors import Collapsed
from raycap.metrics.cider import cider_d_corpus
from raycap.metrics.ptb import tokenize
from raycap.models.prefix import PrefixCaptioner
from raycap.train.validation import BestKeeper, Validator, greedy_captions, to_device
from tests.conftest import TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]


@pytest.fixture(scope="module")
def captioner(make_captioner: MakeCaptioner, tiny: TinyData) -> PrefixCaptioner:
    return make_captioner(tokenizer=tiny.tokenizer, seed=1)


def test_greedy_captions_of_any_batch_size_and_order(captioner: PrefixCaptioner, tiny: TinyData) -> None:
    ids = list(tiny.captions)
    whole = greedy_captions(captioner, tiny.grid, ids, max_length=6)
    assert list(whole) == ids
    assert greedy_captions(captioner, tiny.grid, ids, max_length=6, batch_size=5) == whole
    assert greedy_captions(captioner, tiny.grid, ids[::-1], max_length=6, batch_size=7) == whole
    features = torch.from_numpy(tiny.grid.get(ids))
    made = generate(captioner, features, num_samples=0, greedy=True, max_length=6)
    assert list(whole.values()) == list(made.greedy_captions)
    assert len(set(whole.values())) > 3


def test_a_look_leaves_the_captioner_in_its_mode_and_without_gradients(
    captioner: PrefixCaptioner, tiny: TinyData
) -> None:
    validator = Validator(tiny.select, tiny.grid, max_length=6)
    for training in (True, False):
        captioner.train(training)
        first = validator.cider(captioner), validator.xe_loss(captioner)
        assert captioner.training is training
        assert (validator.cider(captioner), validator.xe_loss(captioner)) == first, "dropout should be off in a look"
    assert all(p.grad is None for p in captioner.parameters())
    captioner.eval()


def test_cider_is_the_metric_on_the_greedy_captions(captioner: PrefixCaptioner, tiny: TinyData) -> None:
    validator = Validator(tiny.select, tiny.grid, max_length=8)
    captions = greedy_captions(captioner, tiny.grid, list(tiny.select), max_length=8)
    references = [[tokenize(text) for text in texts] for texts in tiny.select.values()]
    expected, _ = cider_d_corpus([tokenize(caption) for caption in captions.values()], references)
    assert validator.cider(captioner) == pytest.approx(expected, abs=1e-12)
    assert expected > 0


@pytest.mark.parametrize("batch_size", [100, 3])
def test_xe_loss_is_the_mean_over_all_tokens(captioner: PrefixCaptioner, tiny: TinyData, batch_size: int) -> None:
    """Over tokens and not over captions: of different lengths here, so the two differ."""
    references = {i: (texts[n % 2],) for n, (i, texts) in enumerate(tiny.select.items())}
    losses, lengths = [], []
    with torch.no_grad():
        for image_id, (text,) in references.items():
            prefix = captioner.encode(torch.from_numpy(tiny.grid.get([image_id])))
            row = torch.tensor([[*tiny.tokenizer.encode(text), tiny.tokenizer.eos_id]])
            losses.append(-float(captioner.score(prefix, row, torch.ones(row.shape)).sum()))
            lengths.append(row.shape[1])
    expected = sum(losses) / sum(lengths)
    got = Validator(references, tiny.grid, max_length=20, batch_size=batch_size).xe_loss(captioner)
    assert got == pytest.approx(expected, rel=1e-5)
    by_caption = sum(loss / length for loss, length in zip(losses, lengths, strict=True)) / len(losses)
    assert by_caption != pytest.approx(expected, rel=1e-3)


def test_features_come_as_float32_in_memory_of_torch_s_own(captioner: PrefixCaptioner, tiny: TinyData) -> None:
    ids = list(tiny.captions)[5:9]
    got = to_device(tiny.grid, ids, captioner)
    assert got.shape == (4, 4, 8)
    assert got.dtype == torch.float32
    assert torch.equal(got, torch.from_numpy(tiny.grid.get(ids)))
    got += 1
    assert not torch.equal(got, to_device(tiny.grid, ids, captioner)), "the store must not be written into"


def test_the_best_look_is_remembered_with_its_step() -> None:
    keeper = BestKeeper(0.5)
    looks = [(0.8, True), (0.7, False), (0.9, True), (0.9, False), (0.5, False)]
    assert [keeper.look(value, step) for step, (value, _) in enumerate(looks)] == [best for _, best in looks]
    assert (keeper.start, keeper.best, keeper.best_step, keeper.looks_since) == (0.8, 0.9, 2, 2)


def test_falling_below_half_of_the_start_stops_the_run_with_figures_and_a_remedy() -> None:
    keeper = BestKeeper(0.5)
    keeper.look(0.8, 0)
    keeper.look(0.9, 10)
    assert not keeper.look(0.4, 20), "half of the start itself is allowed, and it counts from the start, not the best"
    with pytest.raises(Collapsed) as stopped:
        keeper.look(0.399, 30)
    for part in ("0.8000", "0.3990", "step 30", "0.9000 at step 10", "scst.collapse_share = 0.5", "leave_one_out"):
        assert part in str(stopped.value)
    assert stopped.value.exit_code == 1
    assert str(pickle.loads(pickle.dumps(stopped.value))) == str(stopped.value)


def test_without_a_share_nothing_is_stopped() -> None:
    keeper = BestKeeper()
    for value in (1.0, 0.1, 0.0):
        keeper.look(value, 0)
    assert keeper.best == 1.0


def test_a_keeper_goes_on_from_its_state() -> None:
    keeper, again = BestKeeper(0.5), BestKeeper(0.5)
    for step, value in enumerate((0.6, 0.9, 0.8)):
        keeper.look(value, step)
    state: Any = keeper.state_dict()
    again.load_state_dict(state)
    assert again.state_dict() == state
    with pytest.raises(Collapsed, match=r"from 0.6000 to 0.2000"):
        again.look(0.2, 9)
    assert BestKeeper().state_dict() == {"start": None, "best": -math.inf, "best_step": -1, "looks_since": 0}
