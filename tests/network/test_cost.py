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
    config = complete(NetworkConfig(network="first-version"), 28, 28)
    assert config.strides is None
    assert isinstance(build_network(config, 10, 1), FirstVersion)
