"""From losses on the device to events for everybody who watches."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import Tensor

from mobilenetv2.config import TrainConfig
from mobilenetv2.training.finite import non_finite
from mobilenetv2.training.progress import EpochLines, LiveBar, MetricsFile, TensorBoard, Watcher
from mobilenetv2.training.run_folder import Event, RunFolder

REPORT_EVERY = 0.25
"""Seconds between looks at the losses. Fetching each one would make a GPU wait at every step."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step left behind; ``loss`` and ``hits`` are still on the device.

    Attributes:
        epoch: counted from 1, as people do.
        step: of the whole run, counted from 1.
        lr: the learning rate that the step used.
        count: pictures in the batch.
        loss: mean loss, a scalar.
        hits: right answers, a scalar.
    """

    epoch: int
    step: int
    lr: float
    count: int
    loss: Tensor
    hits: Tensor


class Reporter:
    """Collects the outcomes of steps and passes them on a few times a second."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers
        self._pending: list[StepOutcome] = []
        self._reported = time.perf_counter()

    def step(self, outcome: StepOutcome) -> None:
        """Take note of a step.

        Raises:
            NonFiniteLoss: this or one of the last steps had a loss that is not a number.
        """
        self._pending.append(outcome)
        if time.perf_counter() - self._reported > REPORT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Pass on all steps so far; needed before anything that must not outlive a bad loss.

        Raises:
            NonFiniteLoss: one of them had a loss that is not a number.
        """
        outcomes, self._pending = self._pending, []
        self._reported = time.perf_counter()
        if not outcomes:
            return
        losses = torch.stack([outcome.loss for outcome in outcomes]).tolist()
        hits = torch.stack([outcome.hits for outcome in outcomes]).tolist()
        events: list[Event] = [
            {
                "event": "step",
                "epoch": outcome.epoch,
                "step": outcome.step,
                "loss": loss,
                "accuracy": right / outcome.count,
                "lr": outcome.lr,
            }
            for outcome, loss, right in zip(outcomes, losses, hits, strict=True)
        ]
        good = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
        self.tell(events[:good])
        if good < len(losses):
            bad = outcomes[good]
            raise non_finite("the loss", losses[good], bad.step, bad.epoch, bad.lr)

    def tell(self, events: Sequence[Event]) -> None:
        """Pass events on at once."""
        for watcher in self._watchers:
            watcher.record(events)

    def close(self) -> None:
        """No more events will come."""
        for watcher in self._watchers:
            watcher.close()


def start_reporter(
    config: TrainConfig, folder: RunFolder | None, console: Console, steps: int, done: int
) -> Reporter:
    """A reporter with the watchers that suit the console and the settings.

    Args:
        config: says whether TensorBoard is wanted.
        folder: gets ``metrics.jsonl``; None for a process that only listens.
        console: a terminal gets a live bar, a log file plain lines.
        steps: of the whole run.
        done: of them, before this start.
    """
    if folder is None:
        return Reporter([])
    watchers: list[Watcher] = [MetricsFile(folder.append_events)]
    if config.tensorboard:
        watchers.append(TensorBoard(folder.path, done))
    if not console.quiet:
        if console.is_terminal:
            watchers.append(LiveBar(console, steps, done, config.batch_size))
        watchers.append(EpochLines(console, config.epochs))
    return Reporter(watchers)
