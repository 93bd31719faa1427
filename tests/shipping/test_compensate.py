"""Weights that are rounded one by one, against exhaustive search, convolutions and the tool."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.network.duplicate import duplicate
from mobilenetv2.network.mobilenetv2 import KerasPaddedConv2d
from mobilenetv2.shipping import compensate
from mobilenetv2.shipping.compensate import compensated, round_rows
from mobilenetv2.shipping.quantize import calibration, float_core, with_onnxruntime
from mobilenetv2.shipping.weight_grid import round_weight

LevelsAndBits = pytest.mark.parametrize("bits", [8, pytest.param(7, marks=pytest.mark.slow)])


@pytest.fixture
def batches(small_classifier: Classifier) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8, generator=generator)
    return calibration(small_classifier, pictures)


def layers(classifier: Classifier) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in classifier.for_inference().network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }


def moving_together(count: int, seed: int) -> torch.Tensor:
    """Second moments of inputs that are mostly one and the same: float64 1×K×K."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, count, generator=generator).double()
    inputs = inputs * 0.3 + inputs[:, :1]
    return (inputs.T @ inputs)[None]


def loss(rows: torch.Tensor, rounded: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Squared error of the outputs, for each row."""
    error = (rows - rounded).double()
    return torch.einsum("gok,gkl,gol->go", error, moments, error)


def test_outputs_stay_closer_than_with_the_nearest_weights() -> None:
    torch.manual_seed(0)
    rows, moments = torch.randn(1, 200, 24), moving_together(24, 0)
    nearest = round_weight(rows[0], 7)[None]
    rounded = round_rows(rows, moments, 64)
    ours, others = loss(rows, rounded, moments), loss(rows, nearest, moments)
    assert ours.mean() < 0.3 * others.mean()
    assert (ours <= others).float().mean() > 0.8


def test_few_weights_are_nearly_as_good_as_can_be() -> None:
    """All ways to round 5 weights up or down are tried."""
    torch.manual_seed(0)
    rows, moments = torch.randn(1, 40, 5), moving_together(5, 1)
    levels = 4
    scale = rows.abs().amax(2, keepdim=True) / levels
    below = (rows / scale).floor()
    ways = [
        ((below + torch.tensor(way)).clamp(-levels, levels) * scale)
        for way in itertools.product((0.0, 1.0), repeat=5)
    ]
    best = torch.stack([loss(rows, way, moments) for way in ways]).amin(0)
    nearest = loss(rows, (rows / scale).round() * scale, moments)
    ours = loss(rows, round_rows(rows, moments, levels), moments)
    assert ours.mean() < 2.5 * best.mean()
    assert ours.mean() < 0.5 * nearest.mean()


def test_blocks_are_for_speed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, moments = torch.randn(1, 20, 40), moving_together(40, 2)
    monkeypatch.setattr(compensate, "BLOCK", 100)
    whole = round_rows(rows, moments, 64)
    monkeypatch.setattr(compensate, "BLOCK", 7)
    torch.testing.assert_close(round_rows(rows, moments, 64), whole)


def test_inputs_that_never_move_do_no_harm() -> None:
    rows = torch.randn(2, 3, 4)
    rounded = round_rows(rows, torch.zeros(2, 4, 4, dtype=torch.float64), 127)
    torch.testing.assert_close(rounded[1], round_weight(rows[1]))
    assert round_rows(torch.zeros(1, 1, 2), torch.eye(2).double()[None], 127).abs().max() == 0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        pytest.param(nn.Conv2d(6, 4, 1), (6, 5, 7), id="1x1"),
        pytest.param(nn.Conv2d(3, 8, 3, stride=2, padding=1), (3, 9, 8), id="stem"),
        pytest.param(nn.Conv2d(6, 6, 3, groups=6, stride=2, padding=1), (6, 9, 8), id="depthwise"),
        pytest.param(
            KerasPaddedConv2d(6, 6, 3, groups=6, stride=2, padding=1), (6, 9, 8), id="Keras, 9×8"
        ),
        pytest.param(KerasPaddedConv2d(3, 8, 3, stride=2, padding=1), (3, 6, 7), id="Keras, 6×7"),
        pytest.param(nn.Conv2d(8, 12, 3, groups=4, padding=1), (8, 4, 4), id="groups"),
        pytest.param(nn.Linear(6, 4), (6,), id="linear"),
    ],
)
def test_second_moments_say_what_a_layer_puts_out(
    layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensate, "PATCHED_PIXELS", 250)  # three pictures or so
    inputs = torch.randn(7, *shape)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    with torch.inference_mode():
        outputs = layer(inputs).double()
    energy = outputs.square().sum([axis for axis in range(outputs.ndim) if axis != 1])
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    rows = layer.weight.detach().reshape(groups, len(layer.weight) // groups, -1)
    moments = compensate._second_moments(layer, inputs)
    torch.testing.assert_close(
        loss(rows, torch.zeros(()), moments).flatten(), energy, rtol=1e-4, atol=1e-4
    )


@LevelsAndBits
def test_rounding_again_changes_nothing(
    bits: int, small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    before = {name: one.clone() for name, one in small_classifier.network.state_dict().items()}
    done = compensated(small_classifier, batches, bits)
    for name, one in small_classifier.network.state_dict().items():
        assert torch.equal(one, before[name]), "the classifier itself must not change"
    for name, layer in layers(done).items():
        whole = layer.weight
        torch.testing.assert_close(round_weight(whole, bits), whole, rtol=0, atol=1e-6, msg=name)
        assert not torch.allclose(whole, layers(small_classifier)[name].weight, atol=1e-6), name


@LevelsAndBits
def test_the_tool_finds_the_same_weights(
    bits: int, small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    done = compensated(small_classifier, batches, bits)
    model = with_onnxruntime(float_core(done), batches, bits=bits)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            integers, scale = (constants[name] for name in made[node.input[1]].input[:2])
            found.append(integers * scale.reshape(-1, *[1] * (integers.ndim - 1)))
    expected = [layer.weight.numpy() for layer in layers(done).values()]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * np.abs(other).max())


def test_means_of_all_channels_are_kept(
    small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    done = compensated(small_classifier, batches, 7)

    def means(classifier: Classifier) -> dict[str, torch.Tensor]:
        folded, found = classifier.for_inference(), {}

        def remember(name: str) -> Callable[..., None]:
            def look(_: nn.Module, __: object, output: torch.Tensor) -> None:
                found[name] = output.transpose(0, 1).flatten(1).mean(1)

            return look

        for name, layer in folded.network.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(remember(name))
        with torch.inference_mode():
            folded.network(torch.from_numpy(np.concatenate(batches)))
        return found

    expected = means(small_classifier)
    for name, found in means(done).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_logits_are_nearer(small_classifier: Classifier, batches: list[np.ndarray]) -> None:
    """On pictures that nothing was measured on."""
    pictures = torch.rand(64, 1, 16, 16) * 4 - 2
    nearest = small_classifier.for_inference()
    for layer in nearest.network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight = nn.Parameter(round_weight(layer.weight, 7), requires_grad=False)
    with torch.inference_mode():
        exact = small_classifier.for_inference().network(pictures)
        plain = (nearest.network(pictures) - exact).abs().mean()
        ours = compensated(small_classifier, batches, 7).network(pictures) - exact
    assert ours.abs().mean() < 0.7 * plain


def test_layers_make_up_for_what_rounding_loses(small_classifier: Classifier) -> None:
    """With the inputs that a layer really gets; biases, which make up for means, do not count."""
    torch.manual_seed(0)
    smooth = F.interpolate(torch.randn(64, 1, 6, 6), (64, 64), mode="bilinear")  # as photos are
    batches = [few.numpy() for few in smooth.split(16)]
    exact = layers(small_classifier)
    folded = compensated(small_classifier, batches, 7)
    errors: dict[str, tuple[float, float]] = {}

    def look(name: str) -> Callable[..., None]:
        def measure(layer: nn.Module, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
            def error(weight: torch.Tensor) -> float:
                changed = duplicate(exact[name])
                changed.weight.copy_(weight - exact[name].weight)
                off = changed(*inputs)
                return float((off - off.mean((0, 2, 3), keepdim=True)).square().mean())

            whole = exact[name].weight
            if inputs[0].shape[2] >= 8:  # elsewhere there is hardly anything to learn from
                errors[name] = error(layer.weight), error(round_weight(whole, 7))

        return measure

    for name, layer in folded.network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(look(name))
    with torch.inference_mode():
        folded.network(torch.from_numpy(np.concatenate(batches)))
    ratios = [ours / nearest for ours, nearest in errors.values()]
    assert len(ratios) == 20
    assert np.exp(np.log(ratios).mean()) < 0.85


def test_what_runs_in_another_library_stays_too(
    small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    """A classifier with an engine is its own copy for inference."""
    before = {name: one.clone() for name, one in small_classifier.network.state_dict().items()}
    done = compensated(small_classifier.with_engine(lambda pictures: pictures), batches)
    assert done.engine is None
    assert not any(module._forward_hooks for module in small_classifier.network.modules())
    assert not any(module._forward_hooks for module in done.network.modules())
    for name, one in small_classifier.network.state_dict().items():
        assert torch.equal(one, before[name]), name


def test_what_is_kept_stays(small_classifier: Classifier, batches: list[np.ndarray]) -> None:
    name = "features.3.conv.1.0"
    exact = layers(small_classifier)[name].weight
    assert torch.equal(
        layers(compensated(small_classifier, batches, keep=[name]))[name].weight, exact
    )


def test_only_so_many_pictures_are_in_memory(
    small_classifier: Classifier, batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensate, "MOST_PIXELS", 16 * 16 * 20 + 5)
    few = compensated(small_classifier, batches)
    first = [np.concatenate(batches)[:20]]
    assert torch.equal(
        layers(few)["features.18.0"].weight,
        layers(compensated(small_classifier, first))["features.18.0"].weight,
    )
