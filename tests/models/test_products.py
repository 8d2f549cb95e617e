"""Products by oneDNN against torch's own: values, gradients, layers that were changed, weights laid out once."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raycap.models.products import (
    OneDNNConv1D,
    OneDNNHead,
    OneDNNLinear,
    laid_out_once,
    linear,
    multiply,
    pieces,
    use_onednn,
)

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), Conv1D(32, 40), nn.Linear(32, 50, bias=False))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (3, 7, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_torchs(shape: tuple[int, ...], bias: bool) -> None:
    given = [drawn(*shape), drawn(40, 24, seed=1), drawn(40, seed=2) if bias else None]
    results = []
    for product in (linear, nn.functional.linear):
        rows, weight, added = (None if each is None else each.clone().requires_grad_() for each in given)
        out = product(rows, weight, added)
        out.backward(drawn(*out.shape, seed=3))
        results.append([out.detach(), *(each.grad for each in (rows, weight, added) if each is not None)])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


def test_what_is_frozen_gets_no_gradient() -> None:
    rows, weight = drawn(5, 24).requires_grad_(), drawn(40, 24)
    linear(rows, weight).sum().backward()
    assert rows.grad is not None
    assert weight.grad is None


def test_gradients_repeat_to_the_last_bit() -> None:
    rows, weight = drawn(300, 64), drawn(500, 64, seed=1).requires_grad_()
    found = []
    for _ in range(4):
        weight.grad = None
        linear(rows, weight).square().sum().backward()
        found.append(weight.grad)
    assert all(torch.equal(found[0], each) for each in found)


def test_products_without_gradients() -> None:
    torch.testing.assert_close(multiply(drawn(5, 24), drawn(24, 40)), drawn(5, 24) @ drawn(24, 40))
    torch.testing.assert_close(multiply(drawn(24, 5).T, drawn(40, 24).T), drawn(24, 5).T @ drawn(40, 24).T)


def test_other_types_and_autocast_stay_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("by oneDNN")

    monkeypatch.setattr("raycap.models.products.onednn_linear", refused)
    with pytest.raises(AssertionError, match="by oneDNN"):
        linear(drawn(5, 24), drawn(40, 24))
    for dtype in (torch.bfloat16, torch.float64):
        assert linear(drawn(5, 24).to(dtype), drawn(40, 24).to(dtype)).dtype == dtype
        assert pieces(drawn(40, 24).to(dtype)) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(drawn(5, 24), drawn(40, 24)).dtype == torch.bfloat16


def test_layers_are_changed_in_place_and_keep_their_parameters() -> None:
    plain, changed = network(), network()
    names = list(plain.state_dict())
    weights = [parameter.data_ptr() for parameter in changed.parameters()]
    use_onednn(changed, changed[3])
    assert [type(layer) for layer in changed] == [OneDNNLinear, nn.ReLU, OneDNNConv1D, OneDNNHead]
    assert list(changed.state_dict()) == names
    assert [parameter.data_ptr() for parameter in changed.parameters()] == weights
    rows = drawn(9, 24)
    torch.testing.assert_close(changed(rows), plain(rows))
    for ours, torchs in zip(*(torch.autograd.grad(net(rows).square().sum(), list(net.parameters()))
                              for net in (changed, plain)), strict=True):  # fmt: skip
        torch.testing.assert_close(ours, torchs)


def test_derived_layers_are_left_alone() -> None:
    class Quantised(nn.Linear):
        pass

    layer = Quantised(3, 4)
    use_onednn(nn.Sequential(layer), layer)
    assert type(layer) is Quantised


def test_weights_are_laid_out_on_entry_and_let_go_at_the_end() -> None:
    net, rows = network(), drawn(9, 24)
    use_onednn(net, net[3])
    before = net(rows)
    with torch.inference_mode(), laid_out_once(net):
        assert all(net[place].ready is not None for place in (0, 2, 3))
        torch.testing.assert_close(net(rows), before.detach())
    assert all(net[place].ready is None for place in (0, 2, 3))
    with torch.no_grad():
        net[0].weight.mul_(2)
    with torch.inference_mode(), laid_out_once(net):
        assert not torch.allclose(net(rows), before)
    torch.testing.assert_close(copy.deepcopy(net)(rows), net(rows))


def test_the_first_to_leave_takes_nothing_from_the_others() -> None:
    net = network()
    use_onednn(net)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with laid_out_once(net):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with laid_out_once(net):
        leave.set()
        thread.join()
        assert net[0].ready is not None
    assert net[0].ready is None


def test_an_error_inside_lets_them_go_too() -> None:
    net = network()
    use_onednn(net)
    with pytest.raises(ZeroDivisionError), laid_out_once(net):
        _ = 1 / 0
    assert net[0].ready is None
