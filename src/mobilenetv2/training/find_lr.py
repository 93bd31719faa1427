"""The learning-rate range test (Smith 2017, "Cyclical Learning Rates", section 3.3).

A copy of the network trains for a few steps while the learning rate climbs exponentially. Where the
rate is too low nothing happens, in a good range the loss falls, too high it shoots up.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import TrainConfig
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import Batches
from mobilenetv2.errors import WorkFailed, first_line
from mobilenetv2.machine_memory import ran_out
from mobilenetv2.training import portions
from mobilenetv2.training.device import Device
from mobilenetv2.training.loss import batch_loss
from mobilenetv2.training.memory import too_little_memory
from mobilenetv2.training.optimizers import build_optimizer, clip_gradient
from mobilenetv2.training.start import Start
from mobilenetv2.training.transfer import Tuning, set_train_mode

LOWEST, HIGHEST = 1e-5, 10.0
STEPS, MOST_STEPS = 120, 480
"""Of a climb. Small batches learn little in few steps: where the loss hardly falls, the next climb
takes twice as many, if all together are no more than half of the run."""
CLEAR, NOTICEABLE = 0.1, 0.02
"""Falls of the smoothed loss, as a share of where it begins: enough to end the search, and the
least that counts."""
LUCK = 1.4
"""Standard deviations of a batch's loss. Of a hundred climbs of any length that learn nothing, one
falls by as much, smoothed (simulated with independent normal losses)."""
SMOOTHING = 0.9
SETTLED = 10  # steps that the smoothing looks back on; before that, it is the luck of few batches
DIVERGED = 3.0  # times the lowest smoothed loss
MARGIN = 4.0  # how far below the rate of the lowest loss a run can hold out for its whole length


@dataclass(frozen=True)
class Climb:
    """The learning rate of each step, its loss, and the losses smoothed without delay bias."""

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def lowest(self) -> int:
        """The step after which the smoothed loss is lowest, the first ones left out."""
        return min(range(SETTLED, len(self.smoothed)), key=self.smoothed.__getitem__, default=0)

    @property
    def fall(self) -> float:
        """How far the smoothed loss falls, as a share of where it begins."""
        if not self.lowest:
            return 0.0
        return 1 - self.smoothed[self.lowest] / self.smoothed[SETTLED]

    @property
    def luck(self) -> float:
        """What no fall exceeds by luck; from differences, which a trend hardly changes."""
        changes = np.diff(self.losses[: max(self.lowest, 2 * SETTLED) + 1])
        deviation = float(np.std(changes)) / math.sqrt(2)
        return LUCK * deviation / self.smoothed[SETTLED]


@dataclass(frozen=True)
class RangeTest(Climb):
    """The last climb and what follows from it.

    Attributes:
        suggestion: a peak learning rate for training.
        reason: why, in a sentence.
    """

    suggestion: float
    reason: str


def find_lr(
    classifier: Classifier,
    batches: Batches,
    config: TrainConfig,
    device: Device,
    tuning: Tuning = Tuning(),  # noqa: B008  (immutable)
    class_weight: Tensor | None = None,
    most_steps: int = MOST_STEPS,
) -> RangeTest:
    """Run the test on a copy of the network; nothing of ``classifier`` changes.

    Args:
        classifier: with the weights that training would start from.
        batches: to train on.
        config: every setting.
        device: where it runs.
        tuning: how much of the network learns.
        class_weight: what a picture of each class counts for, as :func:`batch_loss` takes it.
        most_steps: of the longest climb.

    Raises:
        ConfigError: the device has too little memory for a batch.
        WorkFailed: the loss never fell, so nothing can be suggested.
    """
    state = torch.get_rng_state()
    of_the_run = config.epochs * batches.steps_per_epoch
    steps = done = STEPS
    while True:
        trial = classifier.with_network(copy.deepcopy(classifier.network))
        try:
            climb = _climb(trial, batches, config, device, tuning, class_weight, steps)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            reason = first_line(error)
            raise too_little_memory(reason, config.batch_size, device.device) from error
        torch.set_rng_state(state)
        is_clear = climb.fall >= CLEAR and climb.fall > climb.luck
        if is_clear or 2 * steps > most_steps or done + 2 * steps > of_the_run / 2:
            return suggest(climb)
        steps *= 2
        done += steps


def _climb(
    trial: Classifier,
    batches: Batches,
    config: TrainConfig,
    device: Device,
    tuning: Tuning,
    class_weight: Tensor | None,
    steps: int,
) -> Climb:
    """Train ``trial`` in place, the learning rate climbing from the lowest to the highest."""
    set_train_mode(trial.network, tuning)
    optimizer = build_optimizer(
        trial.network, config.optimizer, 1.0, tuning.layer_decay, device.sgd
    )
    shares = [group["lr"] for group in optimizer.param_groups]  # of the peak, block by block
    climb = Climb([], [], [])
    average = 0.0
    for step, batch in zip(range(steps), _endless(batches), strict=False):
        lr = LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = lr * share
        if step == 0:
            device.compile_ahead(trial.network, batch.pictures)
        loss, _ = batch_loss(trial, batch, device, config.label_smoothing, class_weight)
        optimizer.zero_grad()
        loss.backward()
        clip_gradient(trial.network, config.optimizer.clip_norm)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        climb.lrs.append(lr)
        climb.losses.append(value)
        climb.smoothed.append(average / (1 - SMOOTHING ** (step + 1)))
        if step > SETTLED and climb.smoothed[-1] > DIVERGED * min(climb.smoothed[SETTLED:]):
            break
    return climb


def find_lr_of(begun: Start, most_steps: int = MOST_STEPS) -> RangeTest:
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
        most_steps,
    )


def suggest(climb: Climb) -> RangeTest:
    """The suggestion that follows from the measured losses.

    Raises:
        WorkFailed: the loss never fell.
    """
    lrs, smoothed, lowest = climb.lrs, climb.smoothed, climb.lowest
    if climb.fall < NOTICEABLE or climb.fall <= climb.luck:
        raise WorkFailed(
            "find-lr: the loss did not fall at any learning rate by more than it varies from batch "
            "to batch, so none can be suggested; check the labels and the pictures (`mobilenetv2 "
            "inspect`), or take larger batches (--batch-size), whose losses vary less, or more "
            "--epochs: a longer run allows a longer test"
        )
    suggestion = float(f"{lrs[lowest] / MARGIN:.1g}")
    is_last = lowest == len(smoothed) - 1
    after = ", the highest that was tried" if is_last else " and rises after it"
    reason = (
        f"the smoothed loss is lowest ({smoothed[lowest]:.3f}) at a learning rate of "
        f"{lrs[lowest]:.2g}{after}; a quarter of that leaves room for a whole run"
    )
    if climb.fall < CLEAR:
        reason += f". It fell by no more than {climb.fall:.0%}, so this is a guess"
    return RangeTest(lrs, climb.losses, smoothed, suggestion, reason)


def _endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
