"""Weights rounded one by one: what one of them loses, those not yet rounded make up for.

A layer's outputs matter, not its weights. With the second moments of its inputs at hand, the error
that rounding one weight makes in the outputs is spread over the weights of the same channel that
are still free, by least squares (Hassibi & Stork 1993, "Optimal Brain Surgeon"; Frantar et al.
2023, "GPTQ", section 3). What is left of it in a channel's mean goes into the bias (Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2). Layers
are rounded from the first to the last, each with the inputs that the rounded ones before it give.

Nothing is trained and no label is needed; some pictures pass twice, whole and rounded.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.network.mobilenetv2 import padding_of
from mobilenetv2.shipping.weight_grid import levels_of

MOST_PIXELS = 128 * 224 * 224
"""Of the pictures that pass together, whose activations are in memory at once."""
PATCHED_PIXELS = 8 * 112 * 112
"""Of the feature maps whose patches are in memory at once."""
DAMPING = 0.01
"""Share of the mean second moment that is added to each: inputs that never move are safe."""
BLOCK = 64
"""Weights of a row after which the rest of it learns what they have lost."""

Layer = nn.Conv2d | nn.Linear


def compensated(
    classifier: Classifier, batches: Sequence[Array], bits: int = 8, keep: Sequence[str] = ()
) -> Classifier:
    """The classifier, folded, with weights that rounding to the nearest leaves as they are.

    Args:
        classifier: is not changed.
        batches: normalised pictures, float32 N×C×H×W; as many of the first as ``MOST_PIXELS`` are.
        bits: that a weight uses, 8 or 7.
        keep: names of layers whose weights stay as they are; their biases take up what the layers
            before have lost.
    """
    alone = classifier.with_engine(None)
    exact, network = alone.for_inference().network, alone.for_inference().network
    pictures = _first(batches)
    means: dict[str, Tensor] = {}
    for name, layer in _layers(exact):

        def remember(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
            means[name] = _channel_means(output)

        layer.register_forward_hook(remember)
    hooks = []
    for name, layer in _layers(network):
        if name not in keep:
            replaced = partial(_replace_weight, levels=levels_of(bits))
            hooks.append(layer.register_forward_pre_hook(replaced))

        def correct_bias(layer: nn.Module, _: object, output: Tensor, name: str = name) -> Tensor:
            assert isinstance(layer, Layer)
            if layer.bias is None:
                return output
            lost = means[name] - _channel_means(output)
            layer.bias += lost
            return output + lost.view(-1, *[1] * (output.ndim - 2))

        hooks.append(layer.register_forward_hook(correct_bias))
    with torch.no_grad():
        exact(pictures)
        network(pictures)
    for hook in hooks:
        hook.remove()
    return alone.with_network(network)


def _first(batches: Sequence[Array]) -> Tensor:
    """The first pictures that are not too many: float32 N×C×H×W, at least one."""
    count = max(1, MOST_PIXELS // batches[0][0, 0].size)
    taken: list[Array] = []
    for batch in batches:
        if count <= 0:
            break
        taken.append(batch[:count])
        count -= len(batch)
    return torch.from_numpy(np.concatenate(taken))


def _layers(network: nn.Module) -> list[tuple[str, Layer]]:
    """What holds weights, with names."""
    return [(name, part) for name, part in network.named_modules() if isinstance(part, Layer)]


def _channel_means(output: Tensor) -> Tensor:
    """Of N×C or N×C×H×W: the mean of each channel, C."""
    return output.flatten(2).mean((0, 2)) if output.ndim > 2 else output.mean(0)


def _replace_weight(layer: nn.Module, inputs: tuple[Tensor], levels: int) -> None:
    """Round the weight of a layer for these inputs (in place)."""
    assert isinstance(layer, Layer)
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    weight = layer.weight.detach()
    rows = weight.reshape(groups, weight.shape[0] // groups, -1)
    layer.weight.copy_(round_rows(rows, _second_moments(layer, inputs[0]), levels).view_as(weight))


def _second_moments(layer: Layer, inputs: Tensor) -> Tensor:
    """Sums of products of the inputs that meet a row of weights: float64 G×K×K for G groups."""
    total: Tensor | float = 0.0
    for few in inputs.split(max(1, PATCHED_PIXELS // inputs[0, 0].numel())):
        if isinstance(layer, nn.Linear):
            patches = few.T[None, None]  # N×G×K×L, of L places
        else:
            patches = _patches(layer, few).unflatten(1, (layer.groups, -1))
        total = total + (patches @ patches.mT).sum(0).double()
    assert isinstance(total, Tensor)
    return total


def _patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution looks at in each of L places: N×(G·K)×L."""
    padded = F.pad(inputs, padding_of(layer, *inputs.shape[2:]))
    kernel, stride = ((pair[0], pair[1]) for pair in (layer.kernel_size, layer.stride))
    if kernel == stride == (1, 1):
        return padded.flatten(2)
    return F.unfold(padded, kernel, stride=stride)


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
    # In NumPy: thousands of small steps, in each of which PyTorch's threads would wait for another.
    exact = rows.double().numpy()
    size = exact.shape[2]
    scale = np.maximum(np.abs(exact).max(2), 1e-8) / levels
    ends = np.abs(exact) == np.abs(exact).max(2, keepdims=True)
    damping = DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
    moments = moments + damping.view(-1, 1, 1) * torch.eye(size, dtype=torch.float64)
    # Row k of the factor: how the error at weight k is divided among itself and those after it.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True).numpy()
    free, rounded = exact.copy(), np.empty_like(exact)
    for start in range(0, size, BLOCK):
        stop = min(size, start + BLOCK)
        lost = np.empty_like(exact[:, :, start:stop])
        for place in range(start, stop):
            now = free[:, :, place]
            nearest = np.clip(np.rint(now / scale), -levels, levels) * scale
            nearest = np.where(ends[:, :, place], exact[:, :, place], nearest)
            rounded[:, :, place] = nearest
            error = (now - nearest) / factor[:, place, place, None]
            free[:, :, place + 1 : stop] -= (
                error[:, :, None] * factor[:, None, place, place + 1 : stop]
            )
            lost[:, :, place - start] = error
        free[:, :, stop:] -= lost @ factor[:, start:stop, stop:]
    return torch.from_numpy(rounded).float()
