"""The first version's network against a copy typed by hand from its description."""

import torch
from torch import nn

from mobilenetv2.network.first_version import FirstVersion


def test_equal_to_the_hand_typed_layers() -> None:
    def block(i: int, middle: int, o: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(i, middle, 3, stride, 1), nn.ReLU6(), nn.BatchNorm2d(middle),
            nn.Conv2d(middle, middle, 3, 1, 1, groups=32), nn.ReLU6(), nn.BatchNorm2d(middle),
            nn.Conv2d(middle, o, 1),
        ]  # fmt: skip

    typed = nn.Sequential(
        nn.Conv2d(1, 32, 3, 2, 1),
        *block(32, 32, 16, 1), *block(16, 64, 64, 2), *block(64, 64, 64, 1),
        *block(64, 64, 64, 1), *block(64, 64, 64, 1), *block(64, 384, 128, 1),
        nn.Conv2d(128, 512, 1), nn.AvgPool2d(7), nn.Conv2d(512, 512, 1),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    torch.manual_seed(0)
    network = FirstVersion()
    names = zip(typed.state_dict(), network.state_dict().values(), strict=True)
    typed.load_state_dict(dict(names))
    pictures = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(network(pictures), typed(pictures))


def test_other_sizes_channels_and_classes() -> None:
    assert FirstVersion(3, 3).eval()(torch.zeros(2, 3, 40, 31)).shape == (2, 3)


def test_the_description_to_the_letter() -> None:
    """No shortcut, a bias everywhere, no norm after the projection, ReLU6 before each norm."""
    network = FirstVersion()
    modules = list(network.modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert all(module.bias is not None for module in convolutions)
    assert sum(parameter.numel() for parameter in network.parameters()) == 801_210
    kinds = [type(module) for module in modules]
    for place, kind in enumerate(kinds):
        if kind is nn.BatchNorm2d:
            assert kinds[place - 1] is nn.ReLU6
    assert kinds.count(nn.BatchNorm2d) == kinds.count(nn.ReLU6) == 12
