"""Labelled pictures in memory, and the seeded order in which training takes them in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data.augment import Batch, centre, changed, mixed
from mobilenetv2.data.balance import balanced_order
from mobilenetv2.data.draws import permutation
from mobilenetv2.distributed import ALONE, Processes

AT_ONCE = 1 << 23
"""Numbers of pictures that a GPU changes in one go: some 80 batches of 128 digits."""


@dataclass(frozen=True)
class LabelledPictures:
    """A set of pictures with what they show.

    Attributes:
        pictures: uint8 N×C×H×W.
        labels: int64 N, each the place of a class in the list of classes.
        names: N file names, or empty where the pictures never were files.
    """

    pictures: Tensor
    labels: Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "LabelledPictures":
        """The pictures at ``indices`` (int64), in that order."""
        names = tuple(self.names[index] for index in indices.tolist()) if self.names else ()
        return LabelledPictures(self.pictures[indices], self.labels[indices], names)

    def centre(self, size: tuple[int, int]) -> "LabelledPictures":
        """The same set without the margin around what is evaluated (height, width)."""
        return replace(self, pictures=centre(self.pictures, size))

    def to(self, device: torch.device) -> "LabelledPictures":
        """The same set on another device."""
        return LabelledPictures(self.pictures.to(device), self.labels.to(device), self.names)


class Batches:
    """The batches of every epoch: reshuffled, augmented, the last one kept.

    The order depends on seed and epoch alone, so that an epoch can be entered at any step. The
    pictures may have a margin around the ``size`` that the network sees. If ``balanced``, every
    class comes equally often. Of several ``processes`` each gets its part of every batch. Batches
    are made on ``device`` (the pictures' own if left out), wherever the pictures wait.

    >>> pictures = LabelledPictures(torch.zeros(50, 1, 8, 8, dtype=torch.uint8), torch.arange(50))
    >>> batches = Batches(pictures, (8, 8), batch_size=16, config=AugmentConfig(), seed=0)
    >>> batches.steps_per_epoch, [len(batch.labels) for batch in batches.epoch(0)]
    (4, [16, 16, 16, 2])
    """

    def __init__(
        self,
        pictures: LabelledPictures,
        size: tuple[int, int],
        batch_size: int,
        config: AugmentConfig,
        seed: int,
        balanced: bool = False,
        processes: Processes = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self._pictures = pictures
        self._size = size
        self._config = config
        self._seed = seed
        self._balanced = balanced
        self._processes = processes
        self._device = device or pictures.labels.device
        self._bounds = batch_bounds(len(pictures), batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self._bounds)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (from 0) from ``first_step`` on."""
        labels = self._pictures.labels
        order = self._order(epoch).to(labels.device)
        at_once = self._at_once()
        # The same groups wherever the epoch is entered: a GPU may round otherwise in other ones.
        for first in range(first_step - first_step % at_once, self.steps_per_epoch, at_once):
            bounds = self._bounds[first : first + at_once]
            batches = self._changed(order[bounds[0][0] : bounds[-1][1]], epoch, bounds)
            for step, batch in enumerate(batches, first):
                if step >= first_step:
                    yield mixed(batch, self._config, (self._seed, epoch, step))

    def _changed(self, draws: Tensor, epoch: int, bounds: list[tuple[int, int]]) -> list[Batch]:
        """Neighbouring batches, their pictures changed all at once."""
        share = None
        if len(bounds) == 1:
            share = self._processes.share(len(draws))
        if share is not None:
            draws = draws[share.positions.to(draws.device)]
        indices = draws % len(self._pictures)
        pictures = self._pictures.pictures[indices].to(self._device)
        labels = self._pictures.labels[indices].to(self._device)
        draws = draws.to(self._device)
        pictures = changed(pictures, self._size, draws, self._config, self._seed, epoch)
        if len(bounds) == 1:
            return [Batch(pictures, labels, share=share)]
        sizes = [end - start for start, end in bounds]
        parts = zip(pictures.split(sizes), labels.split(sizes), strict=True)
        return [Batch(*part) for part in parts]

    def _at_once(self) -> int:
        """Batches to change in one go: on a GPU many small ones, whose launches would take longer.

        Of several processes each gets its part of every batch by itself.
        """
        if self._device.type != "cuda" or self._processes.count > 1:
            return 1
        start, end = self._bounds[0]
        height, width = self._size
        numbers = (end - start) * self._pictures.pictures.shape[1] * height * width
        return max(1, AT_ONCE // numbers)

    def _order(self, epoch: int) -> Tensor:
        """The pictures of an epoch; one that comes again has another number, and other changes."""
        if self._balanced:
            return balanced_order(self._pictures.labels.cpu(), self._seed, epoch)
        return permutation(self._seed, epoch, len(self._pictures))


def batch_bounds(pictures: int, batch_size: int) -> list[tuple[int, int]]:
    """Start and end of each batch; the last one is kept.

    Batch norm cannot learn from a single picture whose last feature map is 1×1, so a last batch of
    one takes a second picture from its neighbour, or joins it where that has no more than two.

    >>> batch_bounds(7, 3)
    [(0, 3), (3, 5), (5, 7)]
    >>> batch_bounds(5, 2)
    [(0, 2), (2, 5)]
    >>> len(batch_bounds(50_000, 64))
    782
    """
    starts = list(range(0, pictures, batch_size))
    if len(starts) > 1 and batch_size > 1 and pictures - starts[-1] == 1:
        if batch_size > 2:
            starts[-1] -= 1
        else:
            starts.pop()
    return list(zip(starts, [*starts[1:], pictures], strict=True))
