"""Parameters and multiply-adds against the published tables."""

import pytest
import torch

from mobilenetv2.config import NetworkConfig
from mobilenetv2.network.build import build_network, complete
from mobilenetv2.network.cost import count_madds, count_params, layer_costs
from mobilenetv2.network.first_version import FirstVersion
from mobilenetv2.network.mobilenetv2 import MobileNetV2

SIZES = (224, 192, 160, 128, 96)
PUBLISHED = {
    1.4: (6_108_776, (582.20, 428.21, 297.92, 191.31, 108.40)),
    1.3: (5_386_792, (509.37, 374.68, 260.70, 167.45, 94.92)),
    1.0: (3_504_872, (300.77, 221.32, 154.08, 99.07, 56.29)),
    0.75: (2_636_424, (209.07, 153.94, 107.30, 69.13, 39.45)),
    0.5: (1_968_680, (97.13, 71.70, 50.18, 32.58, 18.89)),
    0.35: (1_677_128, (59.29, 43.90, 30.87, 20.22, 11.93)),
    0.25: (1_519_112, (37.20, 27.67, 19.61, 13.01, 7.88)),
    0.1: (1_356_696, (12.92, 9.83, 7.22, 5.08, 3.42)),
}


@pytest.mark.parametrize("width", PUBLISHED)
def test_the_published_table(width: float) -> None:
    with torch.device("meta"):
        network = MobileNetV2(width=width)
    params, madds = PUBLISHED[width]
    assert count_params(network) == params
    assert [round(count_madds(network, 3, size, size) / 1e6, 2) for size in SIZES] == list(madds)


def test_the_layers_add_up_and_nothing_is_left_behind() -> None:
    network = MobileNetV2(10, 1, 0.5)
    costs = layer_costs(network, 1, 64, 64)
    assert sum(cost.params for cost in costs) == count_params(network)
    assert not any(module._forward_hooks for module in network.modules())
    assert next(network.parameters()).device.type == "cpu"
    depthwise = next(cost for cost in costs if "depthwise" in cost.kind)
    assert depthwise.output == (16, 32, 32)
    assert depthwise.madds == 16 * 9 * 32 * 32
    assert depthwise.params == 16 * 9 + 2 * 16


def test_the_first_version() -> None:
    network = FirstVersion()
    assert count_params(network) == 801_210
    assert round(count_madds(network, 1, 28, 28) / 1e6, 2) == 27.68


def test_settings_are_completed() -> None:
    config = complete(NetworkConfig(), 28, 28)
    assert (config.width, config.strides) == (1.0, (2, 1, 2, 2, 1, 1, 1, 1))
    settings = NetworkConfig(network="first-version", width=0.5, strides=(2,) * 8)
    config = complete(settings, 28, 28)
    assert (config.width, config.strides) == (None, None)  # it has neither
    assert isinstance(build_network(config, 10, 1), FirstVersion)


def test_keras_counts_the_running_statistics_too() -> None:
    with torch.device("meta"):
        network = MobileNetV2()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    statistics = sum(2 * norm.num_features for norm in norms)
    assert statistics == 34_112
    assert count_params(network) + statistics == 3_538_984


@pytest.mark.parametrize(
    ("network", "channels", "size"),
    [
        (MobileNetV2(7, 1, 0.35, (2, 1, 2, 1, 1, 1, 1, 1)), 1, (28, 40)),
        (MobileNetV2(7, 3, 0.35, padding="keras"), 3, (65, 96)),
        (FirstVersion(7, 3), 3, (28, 28)),
    ],
)
def test_every_layer_is_as_large_as_it_is(
    network: torch.nn.Module, channels: int, size: tuple[int, int]
) -> None:
    """Shapes and multiply-adds as measured on a real forward pass, counted by hand."""
    expected: dict[str, tuple[tuple[int, ...], int]] = {}

    def hook(name: str) -> object:
        def record(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
            shape = tuple(output.shape[1:])
            if isinstance(module, torch.nn.Conv2d):
                per_value = module.in_channels // module.groups * 9
                if module.kernel_size == (1, 1):
                    per_value //= 9
            else:
                per_value = module.in_features
            expected[name] = (shape, output.numel() * per_value)

        return record

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(hook(name))
    with torch.no_grad():
        network.eval()(torch.zeros(1, channels, *size))
    measured = dict(expected)
    costs = layer_costs(network, channels, *size)
    assert {cost.name: (cost.output, cost.madds) for cost in costs} == measured


def test_counting_changes_nothing() -> None:
    network = MobileNetV2(3, 1, 0.1).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_madds(network, 1, 64, 64)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert all(module.training for module in network.modules())
