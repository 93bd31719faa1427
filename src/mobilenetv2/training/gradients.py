"""Forward and backward of a training step: a batch to gradients.

On a GPU the hundreds of small launches of a step take the processor longer than the GPU needs to do
them. So a step is recorded as a CUDA graph when a batch of its shape comes for the second time, and
from then on replayed with one launch. The first one runs as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mobilenetv2.data.augment import Batch
from mobilenetv2.errors import WorkFailed, first_line
from mobilenetv2.machine_memory import ran_out
from mobilenetv2.training.parallel import StepLoss

LossOf = Callable[[Batch], StepLoss]
"""A batch to its loss, whose ``for_backward`` leads to the parameters."""

CompileAhead = Callable[[nn.Module, Tensor], None]
"""What is told the network, and pictures of a size that it has not seen yet, before their step."""

MOST_GRAPHS = 4
"""Shapes of batches that are recorded: an epoch's last batch is smaller, and mixed pictures are
floats where others are bytes."""


class Gradients:
    """Leaves the gradient of each batch in the parameters' ``grad``."""

    def __init__(
        self, network: nn.Module, loss_of: LossOf, compile_ahead: CompileAhead | None = None
    ) -> None:
        self._network = network
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._loss_of = loss_of
        self._compile_ahead = compile_ahead
        self._sizes: set[torch.Size] = set()

    def of(self, batch: Batch) -> StepLoss:
        """The batch's loss; its gradient takes the place of the last one."""
        size = batch.pictures.shape
        if self._compile_ahead is not None and size not in self._sizes:
            self._compile_ahead(self._network, batch.pictures)
            self._sizes.add(size)
        self._forget()
        loss = self._loss_of(batch)
        loss.for_backward.backward()
        # Its graph would hold on to the nodes that put gradients down, and those to the stream of
        # this step: another one could not be recorded while the loss is in use.
        return replace(loss, for_backward=loss.mean)

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class RecordedGradients(Gradients):
    """The same, recorded and replayed, for a network on a GPU that alone works on a batch.

    What a step is must not change between batches: which parameters learn, the mode of the modules.
    """

    def __init__(
        self, network: nn.Module, loss_of: LossOf, compile_ahead: CompileAhead | None = None
    ) -> None:
        super().__init__(network, loss_of, compile_ahead)
        self._seen: set[Any] = set()
        self._recordings: dict[Any, _Recording] = {}
        self._last: _Recording | None = None
        self._most = MOST_GRAPHS

    def of(self, batch: Batch) -> StepLoss:
        """The batch's loss; its gradient takes the place of the last one."""
        shape = _shape(batch)
        recording = self._recordings.get(shape)
        if recording is None:
            if shape not in self._seen or len(self._recordings) >= self._most:
                self._seen.add(shape)
                self._last = None
                return super().of(batch)
            self._forget()
            self._last = None
            try:
                recording = self._record(batch)
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                # A step that runs may still fit.
                self._most = len(self._recordings)
                return super().of(batch)
            self._recordings[shape] = recording
        if self._last is not recording:
            recording.claim(self._parameters)
            self._last = recording
        return recording.replay(batch)

    def _record(self, batch: Batch) -> "_Recording":
        """The step as a graph, in the memory of the first one, as they are replayed by turns.

        Raises:
            WorkFailed: it cannot be recorded; what PyTorch was in the middle of, it stays in.
        """
        pool = next((one.pool for one in self._recordings.values()), None)
        try:
            return _Recording(self._parameters, self._loss_of, batch, pool)
        except RuntimeError as error:
            if ran_out(error):
                raise
            raise WorkFailed(
                "a training step cannot be recorded as a CUDA graph here; --no-cuda-graphs "
                f"trains without ({first_line(error)})"
            ) from error


class _Recording:
    """A graph, the tensors that it reads, and those that it writes."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], loss_of: LossOf, batch: Batch, pool: Any
    ) -> None:
        self._inputs = _copy(batch)
        # Of a mixture, which is another for each batch: a number would be recorded as it is.
        self._weight = torch.ones((), device=batch.labels.device)
        if batch.other_labels is not None:
            self._inputs = self._inputs._replace(weight=self._weight)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            loss = loss_of(self._inputs)
            loss.for_backward.backward()
        self._mean, self._hits, self._count = loss.mean, loss.hits, loss.count
        self._gradients = [parameter.grad for parameter in parameters]

    @property
    def pool(self) -> Any:
        """The memory that the graph works in."""
        return self._graph.pool()

    def claim(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the parameters' gradients be those that this graph writes."""
        for parameter, gradient in zip(parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def replay(self, batch: Batch) -> StepLoss:
        """The step on another batch of the same shape."""
        inputs = self._inputs
        inputs.pictures.copy_(batch.pictures)
        inputs.labels.copy_(batch.labels)
        if inputs.other_labels is not None and batch.other_labels is not None:
            inputs.other_labels.copy_(batch.other_labels)
            self._weight.fill_(batch.weight)
        self._graph.replay()
        mean = self._mean.clone()
        return StepLoss(mean, mean, self._hits.clone(), self._count)


def _copy(batch: Batch) -> Batch:
    others = batch.other_labels
    return batch._replace(
        pictures=batch.pictures.clone(),
        labels=batch.labels.clone(),
        other_labels=None if others is None else others.clone(),
    )


def _shape(batch: Batch) -> Any:
    """All that a recording cannot take in anew."""
    return tuple(
        (part.shape, part.dtype, part.stride()) if isinstance(part, Tensor) else part is None
        for part in batch
    )
