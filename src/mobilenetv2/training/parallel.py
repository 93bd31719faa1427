"""The training step of many processes, which gives the gradient that one process would have."""

import inspect
import itertools
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.augment import Batch
from mobilenetv2.distributed import Processes
from mobilenetv2.network import shared_batch
from mobilenetv2.training.device import Device
from mobilenetv2.training.loss import batch_loss


@dataclass(frozen=True)
class StepLoss:
    """A step's loss.

    Attributes:
        for_backward: has gradients; their mean over the processes is the whole batch's gradient.
        mean: of the whole batch, a scalar.
        hits: in the whole batch, a scalar.
        count: pictures in the whole batch.
    """

    for_backward: Tensor
    mean: Tensor
    hits: Tensor
    count: int


class ParallelTraining:
    """A classifier in training, whose batches are divided between processes.

    PyTorch's DistributedDataParallel takes the mean of the processes' gradients. Parts of a batch
    are not all of one size, so each loss is weighted with its part.
    """

    def __init__(
        self,
        classifier: Classifier,
        processes: Processes,
        sync_norms: bool,
        class_weight: Tensor | None = None,
    ) -> None:
        self._classifier = classifier
        self._network = classifier.network
        self._processes = processes
        self._sync_norms = sync_norms
        self._class_weight = class_weight
        if processes.count > 1:
            shared_batch.install(self._network, sync_norms)
            self._classifier = classifier.with_network(_data_parallel(self._network))

    def loss(self, batch: Batch, device: Device, label_smoothing: float) -> StepLoss:
        """The loss of this process's part, and the figures of the whole batch."""
        if self._processes.count > 1:
            shared_batch.set_share(self._network, batch.share)
        loss, hits = batch_loss(
            self._classifier, batch, device, label_smoothing, self._class_weight
        )
        here = len(batch.labels)
        if batch.share is None:
            return StepLoss(loss, loss.detach(), hits, here)
        total = batch.share.total
        mean = self._processes.total(loss.detach() * (here / total))
        weight = self._processes.count * here / total
        return StepLoss(loss * weight, mean, self._processes.total(hits), total)

    def agree(self, *networks: nn.Module | None) -> None:
        """Give everybody the first process's running statistics, where each has its own."""
        if self._processes.count > 1 and not self._sync_norms:
            present = (network for network in networks if network is not None)
            buffers = itertools.chain.from_iterable(network.buffers() for network in present)
            self._processes.copy_from_first(buffers)


def _data_parallel(network: nn.Module) -> nn.Module:
    """Running statistics are not sent around at every step: they are the same, or sent when due."""
    known = inspect.signature(DistributedDataParallel).parameters
    newer = "forward_sync_buffers" in known  # the new name of the same
    options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
    return DistributedDataParallel(network, **options)
