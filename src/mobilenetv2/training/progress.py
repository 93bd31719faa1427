"""Showing a run while it happens: a live bar in a terminal, plain lines in a log file."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mobilenetv2.errors import ConfigError
from mobilenetv2.extras import pip_install
from mobilenetv2.training.run_folder import Event

SMOOTHING = 0.95


class Watcher(Protocol):
    """Something that is told what happens in a run."""

    def record(self, events: Sequence[Event]) -> None:
        """Take note of events, in their order."""

    def close(self) -> None:
        """No more events will come."""


class MetricsFile:
    """Writes every event into the run folder."""

    def __init__(self, append: Callable[[Sequence[Event]], None]) -> None:
        self._append = append

    def record(self, events: Sequence[Event]) -> None:
        """Append one line per event."""
        self._append(events)

    def close(self) -> None:
        """Nothing is held open."""


class EpochLines:
    """One plain line per epoch, fit for a log file."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._epochs = epochs

    def record(self, events: Sequence[Event]) -> None:
        """Print the epochs among ``events``."""
        for event in events:
            if event["event"] == "epoch":
                self._console.print(
                    epoch_line(event, self._epochs), highlight=False, soft_wrap=True
                )

    def close(self) -> None:
        """Nothing is held open."""


class LiveBar:
    """A bar with loss, accuracy, learning rate, pictures per second and time left."""

    def __init__(self, console: Console, steps: int, done: int, batch_size: int) -> None:
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[figures]}", style="cyan"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, epoch="–", figures="")
        self._batch_size = batch_size
        self._loss: float | None = None
        self._accuracy = 0.0
        self._rate = 0.0
        self._clock = time.perf_counter()
        self._bar.start()

    def record(self, events: Sequence[Event]) -> None:
        """Move the bar by the steps among ``events``."""
        steps = [event for event in events if event["event"] == "step"]
        if not steps:
            self._clock = time.perf_counter()  # what passed was no training
            return
        for event in steps:
            keep = 0.0 if self._loss is None else SMOOTHING
            self._loss = keep * (self._loss or 0) + (1 - keep) * event["loss"]
            self._accuracy = keep * self._accuracy + (1 - keep) * event["accuracy"]
        now = time.perf_counter()
        rate = len(steps) * self._batch_size / max(now - self._clock, 1e-9)
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        self._clock = now
        last = steps[-1]
        figures = (
            f"loss {self._loss:.3f}  accuracy {self._accuracy:.1%}  "
            f"lr {last['lr']:.2g}  {self._rate:,.0f} pictures/s"
        )
        self._bar.update(self._task, completed=last["step"], epoch=last["epoch"], figures=figures)

    def close(self) -> None:
        """Take the bar away; the lines of the epochs stay."""
        self._bar.stop()


class TensorBoard:
    """Every event as TensorBoard scalars (extra ``tensorboard``)."""

    def __init__(self, folder: Path, done: int) -> None:
        self.require()
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier process wrote of later steps will come again.
        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    @staticmethod
    def require() -> None:
        """Make sure that TensorBoard can be written.

        Raises:
            ConfigError: its package is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"--tensorboard needs another package: {pip_install('tensorboard')}"
            ) from error

    def record(self, events: Sequence[Event]) -> None:
        """Add one scalar per figure, over the steps."""
        for event in events:
            for name, value in event.items():
                if isinstance(value, float):
                    tag = f"{event['event']}/{name}"
                    self._writer.add_scalar(tag, value, event["step"])

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


def epoch_line(event: Event, epochs: int) -> str:
    """An epoch in words: what was measured, and how far training is ahead of validation."""
    measured = (
        f"train {event['train_loss']:.4f} {event['train_accuracy']:.2%}  "
        f"validation {event['val_loss']:.4f} {event['val_accuracy']:.2%}  "
        f"gap {event['gap'] * 100:+.2f} points"
    )
    if event["step"] == 0:  # a head that was solved in one go
        return measured
    return (
        f"epoch {event['epoch']:>{len(str(epochs))}}/{epochs}  {measured}  lr {event['lr']:.2g}  "
        f"{event['images_per_second']:,.0f} pictures/s  {event['seconds']:.1f} s"
    )
