"""LSTM captioners: the four verbs agree with each other, and with the papers' equations row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raycap.decoding.beam import beam_search
from raycap.decoding.sample import generate
from raycap.errors import RecipeError
from raycap.models.lstm import LSTMCaptioner, LSTMConfig
from tests.conftest import NumberTokenizer

CASES = [("merge", "pooled"), ("merge", "grid"), ("attention", "grid")]


def build(kind: str, features: str, **config: float) -> LSTMCaptioner:
    torch.manual_seed(0)
    made = LSTMCaptioner(LSTMConfig(kind, features=features, feature_dim=8, width=12, **config), NumberTokenizer())  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    return made.eval()


def pictures(features: str, count: int) -> Tensor:
    return torch.randn(count, *([9, 8] if features == "grid" else [8]), generator=torch.Generator().manual_seed(1))


def slowly(captioner: LSTMCaptioner, picture: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
    """One caption word by word over the bare weights: logits [T, V] in front of each word, and looks [T, G].

    The image a, cells aᵢ; then of each word (Xu et al. 2015, sec. 3.1 and 4.2; Tanti et al. 2017 for merge):
    αᵢ = softmax(pᵀ tanh(aᵢ + W h)), z = σ(gate h) · Σ αᵢ aᵢ, h = LSTM([word, z]), said = tanh(L h + C z + word);
    merge: h = LSTM(word), said = relu(L (a + h)).
    """
    weights = captioner.state_dict()

    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", torch.zeros(()))

    def lstm(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = (weights["cell.weight_ih"] @ x + weights["cell.bias_ih"]
                 + weights["cell.weight_hh"] @ h + weights["cell.bias_hh"])  # fmt: skip
        enter, keep, new, show = gates.chunk(4)
        c = keep.sigmoid() * c + enter.sigmoid() * new.tanh()
        return show.sigmoid() * c.tanh(), c

    looks_for = captioner.config.kind == "attention"
    raw = [picture] if picture.dim() == 1 else [picture.mean(dim=0)] if not looks_for else list(picture)
    cells = [linear("image", x).relu() for x in raw]
    h = c = torch.zeros(captioner.config.width)
    if looks_for:
        h, c = linear("begin", sum(cells) / len(cells)).tanh().chunk(2)  # type: ignore[arg-type]
    logits, looks = [], []
    for word in [weights["start"], *(weights["words.weight"][token] for token in ids[:-1])]:
        if looks_for:
            near = torch.stack([linear("pointer", (cell + linear("where", h)).tanh())[0] for cell in cells])
            share = near.exp() / near.exp().sum()
            seen = sum(a * cell for a, cell in zip(share, cells, strict=True)) * linear("gate", h).sigmoid()
            h, c = lstm(torch.cat([word, seen]), h, c)
            said = (linear("hidden", h) + linear("context", seen) + word).tanh()
            looks.append(share)
        else:
            h, c = lstm(word, h, c)
            said = linear("hidden", cells[0] + h).relu()
            looks.append(torch.zeros(0))
        logits.append(linear("out", said))
    return torch.stack(logits), torch.stack(looks)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "features"), CASES)
def test_steps_and_scores_are_those_of_the_equations(kind: str, features: str) -> None:
    captioner, shown = build(kind, features), pictures(features, 3)
    tokens = torch.randint(2, 20, (6, 5), generator=torch.Generator().manual_seed(2))
    slow = [slowly(captioner, shown[row // 2], tokens[row].tolist()) for row in range(6)]
    logits, looks = (torch.stack(each) for each in zip(*slow, strict=True))
    conditioning = captioner.encode(shown)
    state = captioner.prefill(conditioning).repeat(2)
    for position in range(5):
        torch.testing.assert_close(state.readout.logits, logits[:, position], rtol=0, atol=1e-4)
        torch.testing.assert_close(state.looked, looks[:, position], rtol=0, atol=1e-5)
        _, state = captioner.step(state, tokens[:, position])
    expected = torch.log_softmax(logits, dim=2).gather(2, tokens[:, :, None])[:, :, 0]
    torch.testing.assert_close(captioner.score(conditioning, tokens, torch.ones(6, 5)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(captioner.attention(conditioning, tokens), looks, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "features"), CASES)
def test_scores_are_those_of_the_steps(kind: str, features: str) -> None:
    captioner, shown = build(kind, features), pictures(features, 4)
    tokens = torch.randint(2, 20, (12, 6), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(6) < (1 + torch.arange(12) % 6)[:, None]).float()
    conditioning = captioner.encode(shown)
    scores = captioner.score(conditioning, tokens, mask, temperature=0.7)
    again, spread = captioner.score_with_entropy(conditioning, tokens, mask, temperature=0.7)
    assert torch.equal(again, scores)
    state = captioner.prefill(conditioning).repeat(3)
    for position in range(6):
        picked = torch.log_softmax(state.readout.logits / 0.7, dim=1).gather(1, tokens[:, position, None])[:, 0]
        torch.testing.assert_close(scores[:, position], picked * mask[:, position], rtol=0, atol=1e-5)
        entropy = torch.distributions.Categorical(logits=state.readout.logits / 0.7).entropy()
        torch.testing.assert_close(spread[:, position], entropy * mask[:, position], rtol=0, atol=1e-5)
        readout, state = captioner.step(state, tokens[:, position])
        assert torch.equal(readout.logits, state.readout.logits)


@pytest.mark.parametrize(("kind", "features"), CASES)
def test_rows_are_selected_repeated_and_joined(kind: str, features: str) -> None:
    captioner, shown = build(kind, features), pictures(features, 4)
    conditioning = captioner.encode(shown)
    rows = torch.tensor([5, 0, 5, 2])
    tokens = torch.arange(2, 10)
    _, whole = captioner.step(captioner.prefill(conditioning).repeat(2), tokens)
    _, chosen = captioner.step(captioner.prefill(conditioning).repeat(2).select(rows), tokens[rows])
    torch.testing.assert_close(chosen.readout.logits, whole.readout.logits[rows])
    ahead = captioner.step(captioner.prefill(conditioning[:2]).repeat(2), tokens[:4])[1]
    joined = ahead.join(captioner.prefill(conditioning[2:]).repeat(2))
    _, walked = captioner.step(joined, torch.cat([tokens[4:], tokens[4:]]))
    _, alone = captioner.step(captioner.prefill(conditioning[2:]).repeat(2), tokens[4:])
    torch.testing.assert_close(walked.readout.logits[4:], alone.readout.logits)
    assert torch.equal(walked.image, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))


def test_the_merge_model_s_words_see_no_picture_and_its_output_does() -> None:
    """The paper's Fig. 4: the LSTM's state hangs on the words alone."""
    captioner = build("merge", "pooled")
    states = [captioner.prefill(captioner.encode(pictures("pooled", 2) * scale)) for scale in (1, 5)]
    assert torch.equal(states[0].cell[0], states[1].cell[0])
    assert not torch.allclose(states[0].readout.logits, states[1].readout.logits)


def test_attention_looks_somewhere_and_tells_where() -> None:
    captioner, shown = build("attention", "grid"), pictures("grid", 2)
    tokens = torch.randint(2, 20, (4, 5), generator=torch.Generator().manual_seed(3))
    where = captioner.attention(captioner.encode(shown), tokens)
    assert where.shape == (4, 5, 9)
    torch.testing.assert_close(where.sum(dim=2), torch.ones(4, 5))
    assert float((where[:, 0] - where[:, 3]).abs().max()) > 0.01, "another word, another look"
    moved = shown[:, torch.arange(8, -1, -1)]
    torch.testing.assert_close(captioner.attention(captioner.encode(moved), tokens), where.flip(2), rtol=0, atol=1e-5)


def test_gradients_reach_everything() -> None:
    for kind, features in CASES:
        captioner = build(kind, features)
        tokens = torch.randint(2, 20, (4, 5), generator=torch.Generator().manual_seed(3))
        captioner.score(captioner.encode(pictures(features, 2)), tokens, torch.ones(4, 5)).sum().backward()
        silent = [name for name, p in captioner.named_parameters() if p.grad is None or not bool(p.grad.any())]
        assert not silent, f"{kind}: {silent}"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecipeError, match="cells to look at"):
        build("attention", "pooled")
    with pytest.raises(RecipeError, match="merge, attention"):
        build("inject", "grid")
    with pytest.raises(RecipeError, match="width 8"):
        build("merge", "pooled").encode(torch.zeros(2, 7))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "features"), CASES)
@pytest.mark.parametrize("rows_at_once", [512, 11])
def test_generated_log_probabilities_are_those_that_are_scored(kind: str, features: str, rows_at_once: int) -> None:
    """Through the engine: rows that ended leave, images that waited take their places."""
    captioner, shown = build(kind, features), pictures(features, 30)
    with torch.no_grad():
        captioner.out.bias[1] += 1.0  # the EOS: captions of many lengths
    made = generate(captioner, shown, num_samples=3, greedy=True, max_length=9, seed=4, temperature=0.8,
                    rows_at_once=rows_at_once)  # fmt: skip
    assert len(set(made.lengths.tolist())) > 4
    tokens = torch.from_numpy(made.tokens)
    mask = (torch.arange(tokens.shape[1]) < torch.from_numpy(made.lengths)[:, None]).float()
    scored = captioner.score(captioner.encode(shown), tokens, mask, temperature=0.8)
    torch.testing.assert_close(torch.from_numpy(made.behavior_logprobs), scored, rtol=0, atol=1e-5)
    assert all(row[length:] == [0] * (len(row) - length)
               for row, length in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True))  # fmt: skip
    whole = generate(captioner, shown, num_samples=3, greedy=True, max_length=9, seed=4, temperature=0.8)
    assert (whole.captions, whole.greedy_captions) == (made.captions, made.greedy_captions)
    beams = beam_search(captioner, shown, beam_size=1, max_length=9, length_penalty=0.0)
    assert [caption for caption, _ in beams] == list(made.greedy_captions)
