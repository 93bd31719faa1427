"""What changes in the course of a run: all of it is saved, and nothing else has to be."""

import time
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mobilenetv2.errors import ModelFileError
from mobilenetv2.training.checkpoints import Checkpoint, labels_digest
from mobilenetv2.training.moving_average import MovingAverage
from mobilenetv2.training.no_steps import NoSteps
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.schedules import build_schedule
from mobilenetv2.training.start import Start


@dataclass
class History:
    """What is known of a run so far."""

    steps: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    pictures: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0


class RunState:
    """Network, optimizer, schedule and moving average, and how far they are.

    Attributes:
        epoch: complete epochs, validation included.
        step: steps done in the next one.
    """

    def __init__(self, begun: Start, lr: float, steps_per_epoch: int) -> None:
        self.begun = begun
        self.config = begun.config
        self.data = begun.data
        self.classifier = begun.classifier
        self.network = begun.classifier.network
        self.device = begun.device
        self.tuning = begun.tuning
        self.lr = lr
        self.optimizer: Optimizer | NoSteps
        self.schedule: LRScheduler | NoSteps
        if self.tuning.head_only:
            self.optimizer = self.schedule = NoSteps(lr)
        else:
            self.optimizer = build_optimizer(
                self.network,
                self.config.optimizer,
                lr,
                self.tuning.layer_decay,
                self.device.sgd,
            )
            self.schedule = build_schedule(
                self.optimizer, self.config.schedule, self.config.epochs, steps_per_epoch
            )
        self.average = None
        if self.config.ema:
            self.average = MovingAverage(self.network, self.config.ema, self.tuning.pretrained)
        self.epoch = 0
        self.step = 0
        self.history = History()
        self._clock = time.perf_counter()
        self._labels_digest = labels_digest(self.data.train, self.data.val)

    @property
    def averaged(self) -> nn.Module | None:
        """The network with the averaged weights, where there is an average."""
        return None if self.average is None else self.average.network

    def tick(self) -> None:
        """Count the time since the last tick into the length of the run."""
        now = time.perf_counter()  # no change of the wall clock moves it
        self.history.seconds += now - self._clock
        self._clock = now

    def to_checkpoint(self) -> Checkpoint:
        """This moment."""
        self.tick()
        on_cuda = self.device.device.type == "cuda"
        return Checkpoint(
            settings=self.config.model_dump(mode="json"),
            labels_digest=self._labels_digest,
            classifier=self.classifier.metadata(),
            weights=self.network.state_dict(),
            averaged=None if self.averaged is None else self.averaged.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            epoch=self.epoch,
            step=self.step,
            random_state=torch.get_rng_state(),
            cuda_random_state=torch.cuda.get_rng_state(self.device.device) if on_cuda else None,
            lr=self.lr,
            history=asdict(self.history),
        )

    def restore(self, checkpoint: Checkpoint, origin: str) -> None:
        """Go back, or forth, to the moment of ``checkpoint``, which comes from ``origin``.

        Raises:
            ModelFileError: it is not a moment of a run like this one.
        """
        try:
            self.network.load_state_dict(checkpoint.weights)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.schedule.load_state_dict(checkpoint.schedule)
            self.epoch, self.step = checkpoint.epoch, checkpoint.step
            self.history = History(**checkpoint.history)
            if self.average is not None and checkpoint.averaged is not None:
                self.average.network.load_state_dict(checkpoint.averaged)
                self.average.updates = self.history.steps
            torch.set_rng_state(checkpoint.random_state)
            if checkpoint.cuda_random_state is not None and self.device.device.type == "cuda":
                torch.cuda.set_rng_state(checkpoint.cuda_random_state, self.device.device)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelFileError(f"{origin}: the checkpoint is damaged ({error})") from error
