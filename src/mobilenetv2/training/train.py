"""The training loop.

Read :meth:`Training.run` first: an epoch is many steps, then a validation, then a checkpoint. Each
of these is one short method below it. Everything the loop needs was built before it starts.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from mobilenetv2 import __version__
from mobilenetv2.config import TrainConfig
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import Batches, LabelledPictures
from mobilenetv2.data.draws import permutation
from mobilenetv2.data.sources import DataSet
from mobilenetv2.errors import ConfigError, Interrupted, ModelFileError
from mobilenetv2.evaluation.evaluate import Evaluation, evaluate
from mobilenetv2.training.announce import announcement
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.find_lr import RangeTest, find_lr
from mobilenetv2.training.finish import deliver, measure
from mobilenetv2.training.loss import batch_loss
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.progress import TensorBoard
from mobilenetv2.training.reporter import Reporter, StepOutcome, non_finite, start_reporter
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.schedules import build_schedule
from mobilenetv2.training.signals import StopRequest
from mobilenetv2.training.start import Start, start, start_again
from mobilenetv2.training.transfer import fit_head, set_train_mode

MIN_TRAIN_SAMPLE = 500
"""Training pictures, at least, that are measured like the validation set after each epoch."""


def train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train a classifier into a new run folder.

    Args:
        config: every setting.
        console: where to show progress; nowhere if left out.

    Returns:
        The contents of ``result.json``; ``result["run"]`` names the folder.

    Raises:
        UserError: the settings or the data cannot be used; nothing was written.
        NonFiniteLoss: the loss left the numbers; the last good checkpoint is kept.
        Interrupted: a signal came; everything was saved.
    """
    if config.tensorboard:
        TensorBoard.require()
    begun = start(config)
    folder = RunFolder.create(begun.config)
    return Training(begun, folder, console or Console(quiet=True)).run()


def resume(path: Path, console: Console | None = None) -> dict[str, Any]:
    """Go on with the run in ``path`` from ``last.pth.tar``, with its own settings.

    Raises:
        ModelFileError: there is no run, or its checkpoint cannot be used.
        ConfigError: the run is finished already, or was begun with other settings.
    """
    folder = RunFolder.open(path)
    if folder.result.exists():
        raise ConfigError(
            f"--resume {path}: this run is finished; `mobilenetv2 evaluate {path}` measures it"
        )
    config = folder.read_config()
    folder.remove_leftovers()
    checkpoint, notes = Checkpoint.load_first_good(folder.last, folder.previous, folder.best)
    stored = checkpoint.build_classifier(str(folder.last))
    begun = start_again(config, stored.preprocessing)
    if (stored.labels, stored.config) != (begun.classifier.labels, begun.config.network):
        raise ConfigError(
            f"--resume {path}: the checkpoint is for another network or other labels "
            f"({', '.join(stored.labels[:5])}, …) than config.yaml and the data say"
        )
    checkpoint.require_settings(begun.config, f"--resume {path}")
    begun = replace(begun, notes=notes)
    training = Training(begun, folder, console or Console(quiet=True), checkpoint.lr)
    try:
        training.restore(checkpoint)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{folder.last}: the checkpoint is damaged ({error})") from error
    return training.run()


def run_range_test(config: TrainConfig) -> RangeTest:
    """The learning-rate range test for what :func:`train` would train; writes nothing.

    Raises:
        UserError: the settings or the data cannot be used.
        WorkFailed: the loss never fell.
    """
    begun = start(config)
    return find_lr(begun.classifier, _batches(begun), begun.config, begun.device)


@dataclass
class History:
    """What is known of a run so far; part of every checkpoint."""

    steps: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    pictures: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0


class Training:
    """One run: its parts, and the loop that drives them."""

    def __init__(
        self,
        begun: Start,
        folder: RunFolder,
        console: Console,
        lr: float | None = None,
    ) -> None:
        self.begun = begun
        self.config = begun.config
        self.data = begun.data
        self.classifier = begun.classifier
        self.network = begun.classifier.network
        self.device = begun.device
        self.tuning = begun.tuning
        self.folder = folder
        self.console = console

        self.batches = _batches(begun)
        self.train_sample = _sample(self.data, max(len(self.data.val), MIN_TRAIN_SAMPLE))
        self.lr = self._peak_lr() if lr is None else lr
        self.optimizer = build_optimizer(
            self.network, self.config.optimizer, self.lr, self.tuning.layer_decay
        )
        self.schedule = build_schedule(
            self.optimizer, self.config.schedule, self.config.epochs, self.batches.steps_per_epoch
        )
        self.average = _moving_average(self.network, self.config.ema) if self.config.ema else None

        self.epoch = 0  # complete epochs
        self.step = 0  # steps done in the next one
        self.history = History()
        self.clock = time.perf_counter()

    def run(self) -> dict[str, Any]:
        """Train to the end, measure what came out, and write it down."""
        for line in announcement(self.begun, self.batches.steps_per_epoch, self.folder):
            self._say(line)
        steps = self.config.epochs * self.batches.steps_per_epoch
        reporter = start_reporter(
            self.config, self.folder, self.console, steps, done=self.history.steps
        )
        try:
            with StopRequest() as stop:
                if self.epoch == self.step == 0:
                    self._solve_head()
                    self._save(self.folder.last)
                while self.epoch < self.config.epochs:
                    if not self.tuning.head_only:
                        self._train_epoch(reporter, stop)
                    self._validate_epoch(reporter)
                    self._stop_if_asked(reporter, stop)
        finally:
            reporter.close()
        return self._finish()

    def _solve_head(self) -> None:
        """Pretrained weights get a head for these classes before anything else moves."""
        if not self.tuning.pretrained:
            return
        started = time.perf_counter()
        size = (self.data.preprocessing.height, self.data.preprocessing.width)
        words = fit_head(self.classifier, self.data.train.centre(size))
        self._say(words)
        if self.average is not None:
            self.average.module.load_state_dict(self.network.state_dict())
        self.history.training_seconds += time.perf_counter() - started
        self.history.pictures += len(self.data.train)

    def _train_epoch(self, reporter: Reporter, stop: StopRequest) -> None:
        set_train_mode(self.network, self.tuning)
        started = time.perf_counter()
        for batch in self.batches.epoch(self.epoch, first_step=self.step):
            reporter.step(self._train_step(batch))
            if stop.received:
                break
        reporter.flush()
        self.history.training_seconds += time.perf_counter() - started
        if self.step < self.batches.steps_per_epoch:
            self._stop_if_asked(reporter, stop)

    def _train_step(self, batch: Batch) -> StepOutcome:
        lr = float(self.schedule.get_last_lr()[0])
        loss, hits = batch_loss(self.classifier, batch, self.device, self.config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(
                self.network.parameters(), self.config.optimizer.clip_norm
            )
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1
        self.history.steps += 1
        self.history.pictures += len(batch.labels)
        return StepOutcome(
            self.epoch + 1, self.history.steps, lr, len(batch.labels), loss.detach(), hits
        )

    def _validate_epoch(self, reporter: Reporter) -> None:
        """Measure, remember the best, tell, save; only a good epoch is ever saved."""
        train, val = self._measure(self.train_sample), self._measure(self.data.val)
        lr = float(self.schedule.get_last_lr()[0])
        if not math.isfinite(val.loss):
            step, epoch = self.history.steps, self.epoch + 1
            raise non_finite("validation loss", val.loss, step, epoch, lr)
        self.epoch, self.step = self.epoch + 1, 0
        history = self.history
        # Of equally good epochs the later one counts: its learning rate was lower, and on a small
        # validation set an early tie is luck.
        is_best = val.accuracy >= history.best_accuracy
        if is_best:
            history.best_epoch = self.epoch
            history.best_accuracy = val.accuracy
        self._tick()
        event = {
            "event": "epoch",
            "epoch": self.epoch,
            "step": self.history.steps,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "val_loss": val.loss,
            "val_accuracy": val.accuracy,
            "gap": train.accuracy - val.accuracy,
            "lr": lr,
            "seconds": history.seconds,
            "images_per_second": history.pictures / history.training_seconds,
        }
        reporter.tell([event])
        if is_best:
            self._save(self.folder.best)
        self._save(self.folder.last)

    def _stop_if_asked(self, reporter: Reporter, stop: StopRequest) -> None:
        if stop.received is None or self.epoch == self.config.epochs:
            return
        reporter.close()
        self._save(self.folder.last)
        raise Interrupted(
            f"stopped by {stop.received.name} after step {self.history.steps}; everything is "
            f"saved. Go on with: mobilenetv2 train --resume {self.folder.path}",
            exit_code=stop.exit_code,
        )

    def _save(self, path: Path) -> None:
        self._tick()
        self.folder.flush_events()
        on_cuda = self.device.device.type == "cuda"
        Checkpoint(
            settings=self.config.model_dump(mode="json"),
            classifier=self.classifier.metadata(),
            weights=self.network.state_dict(),
            averaged=None if self.average is None else self.average.module.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            epoch=self.epoch,
            step=self.step,
            random_state=torch.get_rng_state(),
            cuda_random_state=torch.cuda.get_rng_state(self.device.device) if on_cuda else None,
            lr=self.lr,
            history=asdict(self.history),
        ).save(path, previous=self.folder.previous if path == self.folder.last else None)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take the run back to the moment of ``checkpoint``."""
        self.network.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.schedule.load_state_dict(checkpoint.schedule)
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.history = History(**checkpoint.history)
        if self.average is not None and checkpoint.averaged is not None:
            self.average.module.load_state_dict(checkpoint.averaged)
            # The first step of all copies the weights, every later one averages.
            self.average.n_averaged.fill_(self.history.steps)
        self.folder.rewind_events(self.history.steps)
        torch.set_rng_state(checkpoint.random_state)
        if checkpoint.cuda_random_state is not None and self.device.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.cuda_random_state, self.device.device)

    def _finish(self) -> dict[str, Any]:
        made = {
            "data": self.config.data.data,
            "epochs": self.config.epochs,
            "steps": self.history.steps,
            "best_epoch": self.history.best_epoch,
            "lr": self.lr,
            "seed": self.config.seed,
            "device": str(self.device.device),
            "precision": self.device.precision,
            "fast_ops": self.device.fast_ops.kind,
            "weights": self.config.transfer.weights,
            "frozen_blocks": self.tuning.frozen_blocks,
            "version": __version__,
        }
        classifier = deliver(self.folder, made)
        figures = measure(classifier, self.data, self.train_sample, self.folder, self.device)
        self._tick()
        speed = {
            "seconds": self.history.seconds,
            "training_seconds": self.history.training_seconds,
            "images_per_second": self.history.pictures / self.history.training_seconds,
        }
        result = {**classifier.training, **speed, **figures}
        self.folder.append_events([{"event": "end", "step": self.history.steps, **result}])
        self.folder.write_result(result)
        self.folder.previous.unlink(missing_ok=True)
        return result | {"run": str(self.folder.path)}

    def _measure(self, pictures: LabelledPictures) -> Evaluation:
        network = self.network if self.average is None else self.average.module
        return evaluate(self.classifier.with_network(network), pictures)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.history.seconds += now - self.clock
        self.clock = now

    def _peak_lr(self) -> float:
        lr = self.config.optimizer.lr
        if lr != "auto":
            return lr
        test = find_lr(self.classifier, self.batches, self.config, self.device)
        self._say(f"learning rate {test.suggestion:g}: {test.reason}")
        return test.suggestion

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _batches(begun: Start) -> Batches:
    data, config = begun.data, begun.config
    size = (data.preprocessing.height, data.preprocessing.width)
    pictures = data.train.to(begun.device.device)
    return Batches(pictures, size, config.batch_size, config.augment, config.seed)


def _sample(data: DataSet, count: int) -> LabelledPictures:
    """Training pictures as evaluation sees them: the same for every epoch, run and seed."""
    sample = data.train.select(permutation(0, 0, len(data.train))[:count])
    return sample.centre((data.preprocessing.height, data.preprocessing.width))


def _moving_average(network: torch.nn.Module, decay: float) -> AveragedModel:
    """The decay grows towards ``decay`` so that a short run forgets its first weights too.

    The ramp is that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], done: Tensor | int) -> None:
        updates = torch.as_tensor(done, dtype=torch.float32)
        share = 1 - ((1 + updates) / (10 + updates)).clamp(max=decay)  # of the current weights
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, share.to(old.dtype))
            else:
                old.copy_(new)

    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    return averaged.requires_grad_(False)
