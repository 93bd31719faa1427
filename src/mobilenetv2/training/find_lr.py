"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates", section 3.3).

A copy of the network trains for a few steps while the learning rate climbs exponentially. Where the
rate is too low nothing happens, in a good range the loss falls, too high it shoots up.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import TrainConfig
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import Batches
from mobilenetv2.errors import WorkFailed
from mobilenetv2.training import portions
from mobilenetv2.training.device import Device
from mobilenetv2.training.loss import batch_loss
from mobilenetv2.training.optimizers import build_optimizer, clip_gradient
from mobilenetv2.training.start import Start
from mobilenetv2.training.transfer import Tuning, set_train_mode

LOWEST, HIGHEST = 1e-5, 10.0
STEPS = 120
SMOOTHING = 0.9
SETTLED = 10  # steps that the smoothing looks back on; before that, it is the luck of few batches
DIVERGED = 3.0  # times the lowest smoothed loss
MARGIN = 4.0  # how far below the rate of the lowest loss a run can hold out for its whole length


@dataclass(frozen=True)
class RangeTest:
    """What the test saw and what follows from it.

    Attributes:
        lrs: the learning rate of each step.
        losses: the loss of each step.
        smoothed: the same, smoothed without delay bias.
        suggestion: a peak learning rate for training.
        reason: why, in a sentence.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    reason: str


def find_lr(
    classifier: Classifier,
    batches: Batches,
    config: TrainConfig,
    device: Device,
    tuning: Tuning = Tuning(),  # noqa: B008  (immutable)
    class_weight: Tensor | None = None,
) -> RangeTest:
    """Run the test on a copy of the network; nothing of ``classifier`` changes.

    Args:
        classifier: with the weights that training would start from.
        batches: to train on.
        config: every setting.
        device: where it runs.
        tuning: how much of the network learns.
        class_weight: what a picture of each class counts for, as :func:`batch_loss` takes it.

    Raises:
        WorkFailed: the loss never fell, so nothing can be suggested.
    """
    state = torch.get_rng_state()
    trial = classifier.with_network(copy.deepcopy(classifier.network))
    set_train_mode(trial.network, tuning)
    optimizer = build_optimizer(trial.network, config.optimizer, 1.0, tuning.layer_decay)
    shares = [group["lr"] for group in optimizer.param_groups]  # of the peak, block by block
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    for step, batch in zip(range(STEPS), _endless(batches), strict=False):
        lr = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = lr * share
        loss, _ = batch_loss(trial, batch, device, config.label_smoothing, class_weight)
        optimizer.zero_grad()
        loss.backward()
        clip_gradient(trial.network, config.optimizer.clip_norm)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        lrs.append(lr)
        losses.append(value)
        smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if step > SETTLED and smoothed[-1] > DIVERGED * min(smoothed[SETTLED:]):
            break
    torch.set_rng_state(state)
    return suggest(lrs, losses, smoothed)


def find_lr_of(begun: Start) -> RangeTest:
    """The test with the batches and the loss that training would have.

    Raises:
        WorkFailed: as :func:`find_lr`.
    """
    return find_lr(
        begun.classifier,
        portions.batches(begun),
        begun.config,
        begun.device,
        begun.tuning,
        portions.class_weight(begun),
    )


def suggest(lrs: list[float], losses: list[float], smoothed: list[float]) -> RangeTest:
    """The suggestion that follows from the measured losses.

    Raises:
        WorkFailed: the loss never fell.
    """
    lowest = min(range(SETTLED, len(smoothed)), key=smoothed.__getitem__, default=0)
    if not lowest or smoothed[lowest] > 0.98 * smoothed[SETTLED]:
        raise WorkFailed(
            "find-lr: the loss did not fall at any learning rate, so none can be suggested; check "
            "the labels and the pictures (`mobilenetv2 inspect`), or take larger batches "
            "(--batch-size), whose losses vary less"
        )
    suggestion = float(f"{lrs[lowest] / MARGIN:.1g}")
    is_last = lowest == len(smoothed) - 1
    after = ", the highest that was tried" if is_last else " and rises after it"
    reason = (
        f"the smoothed loss is lowest ({smoothed[lowest]:.3f}) at a learning rate of "
        f"{lrs[lowest]:.2g}{after}; a quarter of that leaves room for a whole run"
    )
    return RangeTest(lrs, losses, smoothed, suggestion, reason)


def _endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
