"""Weights trained for a moment with rounding in the loop: quantisation-aware, without labels.

The float32 network is the teacher: its probabilities on the run's own pictures are what the rounded
network learns (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"). Batch norms are
folded before, so that what is trained is what is quantised.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mobilenetv2.classifier import Classifier
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.network.mobilenetv2 import InvertedResidual
from mobilenetv2.shipping.weight_grid import round_weight

RATE = 1e-4
STEPS = 100


def trained_with_rounding(
    classifier: Classifier,
    teacher: Classifier,
    batches: Sequence[Array],
    bits: int = 8,
    steps: int = STEPS,
) -> Classifier:
    """The classifier, folded, with weights that lose less when they are quantised.

    Args:
        classifier: what training starts from; is not changed.
        teacher: the float32 one.
        batches: normalised pictures to learn on, float32 N×C×H×W; passed over again and again.
        bits: that a weight uses.
        steps: batches to learn from.
    """
    exact = teacher.for_inference().network
    student = classifier.for_inference().network
    student.requires_grad_(True)
    layers = [m for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _RoundedWeight(bits))
    _round_activations(student, classifier.for_inference().network, batches)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE)
    for step in range(steps):
        inputs = torch.from_numpy(batches[step % len(batches)])
        with torch.no_grad():
            target = exact(inputs).log_softmax(1)
        loss = F.kl_div(student(inputs).log_softmax(1), target, log_target=True,
                        reduction="batchmean")  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimizer.step()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    plain = classifier.for_inference().network
    plain.load_state_dict(student.state_dict(), strict=False)
    return classifier.with_network(plain)


class _RoundedWeight(nn.Module):
    """Rounds a weight, with one scale per output channel; its gradient passes straight through."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        return round_weight(weight, self.bits)


class _RoundedOutput(nn.Module):
    """Rounds an activation to 8 bits between the bounds that were measured."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.scale = max(high - low, 1e-6) / 255
        self.zero = round(-low / self.scale)

    def forward(self, output: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(output, self.scale, self.zero, 0, 255)


def _round_activations(student: nn.Module, plain: nn.Module, batches: Sequence[Array]) -> None:
    """Let activations and projections of the student be rounded, in bounds of its plain self."""
    bounds: dict[str, tuple[float, float]] = {}
    hooks = []
    measured = [name for name, module in plain.named_modules() if isinstance(module, nn.ReLU6)]
    measured += [
        f"{name}.conv.{len(block.conv) - 1}"  # the end of the projection
        for name, block in plain.named_modules()
        if isinstance(block, InvertedResidual)
    ]
    for name in measured:

        def look(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
            low, high = bounds.get(name, (0.0, 0.0))
            bounds[name] = min(low, float(output.min())), max(high, float(output.max()))

        hooks.append(plain.get_submodule(name).register_forward_hook(look))
    with torch.inference_mode():
        for batch in batches[:8]:
            plain(torch.from_numpy(batch))
    for hook in hooks:
        hook.remove()
    for name, (low, high) in bounds.items():
        parent = student.get_submodule(name.rpartition(".")[0])
        layer = student.get_submodule(name)
        setattr(parent, name.rpartition(".")[2], nn.Sequential(layer, _RoundedOutput(low, high)))
