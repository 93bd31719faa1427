"""Weights rounded one by one: what one of them loses, those not yet rounded make up for.

A layer's outputs matter, not its weights. With the second moments of its inputs at hand, the error
that rounding one weight makes in the outputs is spread over the weights of the same channel that
are still free, by least squares (Hassibi & Stork 1993, "Optimal Brain Surgeon"; Frantar et al.
2023, "GPTQ", section 3). What is left of it in a channel's mean goes into the bias (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2). Layers
are rounded from the first to the last, each with the inputs that the rounded ones before it give.

Nothing is trained and no label is needed; some hundred pictures pass once.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.shipping.rounding import levels_of

MOST_PIXELS = 128 * 224 * 224
"""Of the pictures that pass together, whose activations are in memory at once."""
DAMPING = 0.01
"""Share of the mean second moment that is added to each: inputs that never move are safe."""
CHUNK = 8
"""Pictures whose patches are in memory at once."""


def compensated(
    classifier: Classifier, batches: Sequence[Array], bits: int = 8, keep: Sequence[str] = ()
) -> Classifier:
    """The classifier, folded, with weights that rounding again does not change.

    Args:
        classifier: is not changed.
        batches: normalised pictures, float32 N×C×H×W.
        bits: that a weight uses.
        keep: names of layers whose weights stay as they are.
    """
    exact, network = classifier.for_inference().network, classifier.for_inference().network
    pictures = torch.from_numpy(np.concatenate(batches))
    pictures = pictures[: max(1, MOST_PIXELS // pictures[0, 0].numel())]
    means: dict[str, Tensor] = {}
    for name, layer in _layers(exact):

        def remember(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
            means[name] = _channel_means(output)

        layer.register_forward_hook(remember)
    hooks = []
    for name, layer in _layers(network):

        def replace_weight(layer: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if name not in keep:
                layer.weight.copy_(_round_layer(layer, inputs[0], levels_of(bits)))

        def correct_bias(layer: nn.Module, _: object, output: Tensor, name: str = name) -> Tensor:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if layer.bias is None:
                return output
            lost = means[name] - _channel_means(output)
            layer.bias += lost
            return output + lost.view(-1, *[1] * (output.ndim - 2))

        hooks.append(layer.register_forward_pre_hook(replace_weight))
        hooks.append(layer.register_forward_hook(correct_bias))
    with torch.no_grad():
        exact(pictures)
        network(pictures)
    for hook in hooks:
        hook.remove()
    return classifier.with_network(network)


def _layers(network: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """What holds weights, with names."""
    return [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]


def _channel_means(output: Tensor) -> Tensor:
    """Of N×C or N×C×H×W: the mean of each channel, C."""
    return output.flatten(2).mean((0, 2)) if output.ndim > 2 else output.mean(0)


def _round_layer(layer: nn.Conv2d | nn.Linear, inputs: Tensor, levels: int) -> Tensor:
    """The weight of a layer, rounded for these inputs."""
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach()
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    return round_rows(rows, _second_moments(layer, inputs), levels).view_as(weight)


def _second_moments(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> Tensor:
    """Sums of products of the inputs that meet a row of weights: float64 G×K×K for G groups."""
    total: Tensor | float = 0.0
    for few in inputs.split(CHUNK):
        if isinstance(layer, nn.Linear):
            patches = few.T[None, None]  # N×G×K×L, of L places
        else:
            patches = _patches(layer, few).unflatten(1, (layer.groups, -1))
        total = total + (patches @ patches.mT).sum(0).double()
    assert isinstance(total, Tensor)
    return total


def _patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution looks at in each of L places: N×(G·K)×L."""
    if layer.kernel_size == layer.stride == (1, 1) and layer.padding == (0, 0):
        return inputs.flatten(2)
    return F.unfold(
        inputs, _pair(layer.kernel_size), _pair(layer.dilation), _pair(layer.padding),
        _pair(layer.stride),
    )  # fmt: skip


def _pair(numbers: object) -> tuple[int, int]:
    assert isinstance(numbers, tuple)
    return numbers


def round_rows(rows: Tensor, moments: Tensor, levels: int) -> Tensor:
    """Rows of weights on a grid, with an output that stays close.

    The largest weight of a row stays where it is, at the end of the grid: whoever finds the grid by
    it, as all tools do, finds the same.

    Args:
        rows: float32 G×O×K, rows of O channels in G groups.
        moments: float64 G×K×K, of the inputs of each group.
        levels: on either side of zero.

    >>> rows = torch.tensor([[[1.0, 0.26, 0.26]]])
    >>> round_rows(rows, torch.eye(3, dtype=torch.float64)[None], 2)
    tensor([[[1.0000, 0.5000, 0.5000]]])
    >>> alike = torch.ones(1, 3, 3, dtype=torch.float64)  # inputs that always move together
    >>> round_rows(rows, alike, 2)
    tensor([[[1.0000, 0.5000, 0.0000]]])
    """
    exact = rows.double()
    free = exact.clone()
    scale = free.abs().amax(2, keepdim=True).clamp(min=1e-8) / levels
    largest = F.one_hot(free.abs().argmax(2), free.shape[2]).bool()
    moments = moments + torch.eye(free.shape[2], dtype=torch.float64) * (
        DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1) + 1e-12
    )
    # Row k of the factor: how the error at weight k is divided among itself and those after it.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.empty_like(free)
    for place in range(free.shape[2]):
        now = free[:, :, place : place + 1]
        nearest = (now / scale).round().clamp(-levels, levels) * scale
        end = largest[:, :, place : place + 1]
        nearest = torch.where(end, exact[:, :, place : place + 1], nearest)
        rounded[:, :, place : place + 1] = nearest
        lost = (now - nearest) / factor[:, place, place].view(-1, 1, 1)
        free[:, :, place + 1 :] -= lost * factor[:, place, place + 1 :].unsqueeze(1)
    return rounded.float()
