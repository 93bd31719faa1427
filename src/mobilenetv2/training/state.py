"""What changes in the course of a run: all of it is saved, and nothing else has to be."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from mobilenetv2.errors import ModelFileError
from mobilenetv2.training.checkpoints import Checkpoint, labels_digest
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
                self.network, self.config.optimizer, lr, self.tuning.layer_decay
            )
            self.schedule = build_schedule(
                self.optimizer, self.config.schedule, self.config.epochs, steps_per_epoch
            )
        self.average = None
        if self.config.ema:
            self.average = moving_average(self.network, self.config.ema, self.tuning.pretrained)
        self.epoch = 0
        self.step = 0
        self.history = History()
        self._clock = time.perf_counter()
        self._labels_digest = labels_digest(self.data.train, self.data.val)

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
            averaged=None if self.average is None else self.average.module.state_dict(),
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
                self.average.module.load_state_dict(checkpoint.averaged)
                # The first step of all copies random weights; every other one averages.
                self.average.n_averaged.fill_(self.history.steps + self.tuning.pretrained)
            torch.set_rng_state(checkpoint.random_state)
            if checkpoint.cuda_random_state is not None and self.device.device.type == "cuda":
                torch.cuda.set_rng_state(checkpoint.cuda_random_state, self.device.device)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelFileError(f"{origin}: the checkpoint is damaged ({error})") from error


def moving_average(
    network: torch.nn.Module, decay: float, from_first_weights: bool = False
) -> AveragedModel:
    """The exponential moving average of weights and running statistics.

    First weights that are random should be forgotten soon, in a short run too: the decay grows
    towards ``decay`` as that of TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.

    Args:
        network: what is averaged, after each step.
        decay: share of the old average that stays.
        from_first_weights: the average begins with the weights that the network starts from, and
            the decay is the same from the first step on. For pretrained weights: after T steps
            ``decay`` to the power of T of them is left. Weights between the pretrained and the
            fine-tuned ones can be better than either (Wortsman et al. 2022, "Robust fine-tuning of
            zero-shot models").
    """

    def average(averaged: Sequence[Tensor], current: Sequence[Tensor], done: Tensor | int) -> None:
        updates = torch.as_tensor(done, dtype=torch.float32)
        ramp = (1 + updates) / (10 + updates)
        kept = torch.full_like(ramp, decay) if from_first_weights else ramp.clamp(max=decay)
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, (1 - kept).to(old.dtype))
            else:
                old.copy_(new)

    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    if from_first_weights:
        averaged.n_averaged.fill_(1)  # else the first step is copied
    return averaged.requires_grad_(False)
