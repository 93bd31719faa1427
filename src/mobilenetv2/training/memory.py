"""Whether the steps of a run fit into memory; where they don't, which batch would."""

import copy
import ctypes
import gc
import math
from collections.abc import Callable

import torch

from mobilenetv2.data.augment import Batch, train_size
from mobilenetv2.data.picture_cache import GIB
from mobilenetv2.errors import ConfigError
from mobilenetv2.machine_memory import forget_peak, free_memory, peak_memory, ran_out
from mobilenetv2.network.cost import layer_costs
from mobilenetv2.training.loss import batch_loss
from mobilenetv2.training.start import Start
from mobilenetv2.training.transfer import set_train_mode

AT_MOST = 16
"""Bytes that a step takes for each number that a convolution puts out: more than was ever seen."""
MARGIN = 1.25
"""What a step is granted beyond the measured: some take a fifth more."""
FEW = 4
PROBE = 1 << 26
"""Pictures of the smaller of two steps whose memory is compared: so many, or more where they are
small, so that the rough bound gives them so many bytes. The other step has three times as many."""


def check_memory(begun: Start) -> None:
    """Refuse a batch that this machine's memory cannot hold, before Linux stops the run for it.

    Only where a rough bound says that it may be too much is it measured: with steps of few
    pictures, on a copy of the network. On a GPU, and where Linux does not say how much is free,
    nothing is looked at: running out of memory can be noticed there when it happens.

    Raises:
        ConfigError: it would take more than there is.
    """
    free = free_memory()
    if begun.device.device.type != "cpu" or begun.tuning.head_only or free is None:
        return
    count, rough = min(begun.config.batch_size, len(begun.data.train)), _rough_bytes(begun)
    few = max(FEW, PROBE // rough)
    more = 3 * few
    if count <= more or count * rough <= free:
        return
    _give_back()
    before = _peak()
    of_few, of_more = (_peak_of_step(begun, pictures) for pictures in (few, more))
    each = max(1, (of_more - of_few) // (more - few))
    needed = of_more - before + (count - more) * each
    if needed * MARGIN > free:
        fits = max(1, int(more + (free / MARGIN - (of_more - before)) / each))
        raise ConfigError(
            f"--batch-size {begun.config.batch_size}: a step would take {needed / GIB:.1f} GiB of "
            f"memory and {free / GIB:.1f} GiB are free; {fits} fits, by what steps of {few} and "
            f"{more} pictures took"
        )


def largest_that_fits(batch: Batch, step: Callable[[Batch], object]) -> int | None:
    """How many pictures of a batch that does not fit do: half after half is tried with ``step``."""
    size = len(batch.labels)
    while size > 1:
        size //= 2
        try:
            step(_first(batch, size))
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            continue
        return size
    return None


def too_little_memory(
    reason: str, batch_size: int, device: torch.device, fits: int | None = None
) -> ConfigError:
    """What to tell where a device had too little memory for a step.

    Args:
        reason: the device's own words.
        batch_size: that was asked for.
        device: which had too little.
        fits: pictures that were tried, and for which it had enough.
    """
    advice = f"{fits} fits, as was just tried" if fits else "take fewer, or smaller pictures"
    return ConfigError(
        f"--batch-size {batch_size}: {device} has too little memory for it; {advice} ({reason})"
    )


def _first(batch: Batch, count: int) -> Batch:
    others = batch.other_labels
    return batch._replace(
        pictures=batch.pictures[:count],
        labels=batch.labels[:count],
        other_labels=None if others is None else others[:count],
    )


def _rough_bytes(begun: Start) -> int:
    size = begun.data.preprocessing
    height, width = train_size(begun.config.augment, (size.height, size.width))
    costs = layer_costs(begun.classifier.network, size.channels, height, width)
    return AT_MOST * sum(math.prod(cost.output) for cost in costs)


def _peak_of_step(begun: Start, count: int) -> int:
    """The most memory that the process had in a step with so many pictures."""
    size = begun.data.preprocessing
    height, width = train_size(begun.config.augment, (size.height, size.width))
    pictures = torch.zeros(count, size.channels, height, width, dtype=torch.uint8)
    classifier = begun.classifier.with_network(copy.deepcopy(begun.classifier.network))
    set_train_mode(classifier.network, begun.tuning)
    state = torch.get_rng_state()
    try:
        labels = torch.zeros(count, dtype=torch.int64)
        loss, _ = batch_loss(classifier, Batch(pictures, labels), begun.device, 0.0)
        loss.backward()
    finally:
        torch.set_rng_state(state)
    return _peak()


def _give_back() -> None:
    """Return what is free to Linux, and forget the peak: both would hide what a step takes.

    So would garbage that is collected, and its memory used again, in the middle of it.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    forget_peak()


def _peak() -> int:
    peak = peak_memory()
    assert peak is not None  # where it is not told, neither is what is free
    return peak
