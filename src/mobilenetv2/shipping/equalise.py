"""A network made easier to quantise: every channel uses the range that its activation has.

After Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.1, with measured ranges. Weights are quantised per channel anyway; what is left to gain is
in the activations, which share one scale. A channel that never comes near the 6 of its ReLU6 is
scaled up, and the convolution that reads it scales down again: in float32 nothing changes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobilenetv2.classifier import Classifier
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.network.mobilenetv2 import InvertedResidual

CAP = 6.0
MARGIN = 1.2
"""Unseen pictures may exceed what was measured by this factor before ReLU6 cuts them."""
MOST = 16.0
"""Largest factor by which a channel is scaled up."""


def equalised(classifier: Classifier, batches: Sequence[Array]) -> Classifier:
    """The classifier, folded, with channels scaled up to the range of their ReLU6.

    Args:
        classifier: the first version's network, which has no such pairs, comes back as it is.
        batches: normalised pictures to measure ranges on, float32 N×C×H×W.
    """
    folded = classifier.for_inference()
    chains = [
        _layers(block) for block in folded.network.modules() if isinstance(block, InvertedResidual)
    ]
    triples = [
        (one, activation, other)
        for chain in chains
        for one, activation, other in zip(chain, chain[1:], chain[2:], strict=False)
        if isinstance(one, nn.Conv2d) and isinstance(activation, nn.ReLU6)
    ]
    highest = _highest(folded.network, [activation for _, activation, _ in triples], batches)
    with torch.no_grad():
        for first, activation, second in triples:
            assert isinstance(first, nn.Conv2d)
            assert isinstance(second, nn.Conv2d)
            assert first.bias is not None
            factor = (CAP / (highest[activation] * MARGIN).clamp(min=CAP / MOST)).clamp(min=1)
            depthwise = second.groups > 1
            if not depthwise:  # its weights share a scale over these channels, and must not shrink
                factor = factor.sqrt()
            first.weight *= factor.view(-1, 1, 1, 1)
            first.bias *= factor
            second.weight /= factor.view((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))
    return folded


def _layers(block: InvertedResidual) -> list[nn.Module]:
    """Convolutions and activations of a folded block, in order."""
    return [layer for layer in block.modules() if isinstance(layer, nn.Conv2d | nn.ReLU6)]


def _highest(
    network: nn.Module, activations: Sequence[nn.Module], batches: Sequence[Array]
) -> dict[nn.Module, Tensor]:
    """The largest output of each channel of each activation, over all pictures."""
    highest: dict[nn.Module, Tensor] = {}

    def look(activation: nn.Module, _: object, output: Tensor) -> None:
        most = output.amax((0, 2, 3))
        before = highest.get(activation)
        highest[activation] = most if before is None else torch.maximum(most, before)

    hooks = [activation.register_forward_hook(look) for activation in activations]
    with torch.inference_mode():
        for batch in batches:
            network(torch.from_numpy(batch))
    for hook in hooks:
        hook.remove()
    return {activation: most.clone() for activation, most in highest.items()}
