"""Portions of the training pictures: to learn from, to measure, and to solve the first head on."""

from torch import Tensor

from mobilenetv2.data.balance import class_weights
from mobilenetv2.data.batches import Batches, LabelledPictures
from mobilenetv2.data.draws import permutation
from mobilenetv2.data.sources import DataSet
from mobilenetv2.distributed import ALONE, Processes
from mobilenetv2.evaluation.evaluate import measuring_batch
from mobilenetv2.training.device import has_room
from mobilenetv2.training.start import Start

MOST_FOR_FIRST_HEAD = 5000
"""Training pictures, at most, that the head is solved on before fine-tuning takes it further; they
are copied, and 5,000 photos take a gigabyte."""

MOST_TO_MEASURE = 1 << 30
"""Bytes of training pictures, at most, that are measured beside the validation set."""


def batches(begun: Start, processes: Processes = ALONE) -> Batches:
    """What an epoch learns from, on the device where it has the room."""
    data, config = begun.data, begun.config
    size = (data.preprocessing.height, data.preprocessing.width)
    pictures, device = data.train, begun.device.device
    if has_room(device, pictures.pictures.nbytes):
        pictures = pictures.to(device)
    return Batches(
        pictures,
        size,
        config.batch_size,
        config.augment,
        config.seed,
        balanced=config.balance == "sampling",
        processes=processes,
        device=device,
    )


def class_weight(begun: Start) -> Tensor | None:
    """What a picture of each class counts for in the loss, float32 K; None where all are alike."""
    if begun.config.balance != "loss":
        return None
    weights = class_weights(begun.data.train.labels, len(begun.data.classes))
    return weights.to(begun.device.device)


def to_measure(data: DataSet) -> LabelledPictures:
    """Training pictures that are measured like the validation set after each epoch.

    They are as many as that has, or as are measured in one go; fewer of very many, as they are
    copied.
    """
    few = measuring_batch(data.val)
    most = max(few, MOST_TO_MEASURE // data.train.pictures[0].nbytes)
    return _sample(data, min(max(len(data.val), few), most))


def for_first_head(data: DataSet) -> LabelledPictures:
    """All training pictures as evaluation sees them, or a sample of very many."""
    if len(data.train) > MOST_FOR_FIRST_HEAD:
        return _sample(data, MOST_FOR_FIRST_HEAD)
    return data.train.centre((data.preprocessing.height, data.preprocessing.width))


def _sample(data: DataSet, count: int) -> LabelledPictures:
    """Training pictures as evaluation sees them: the same for every epoch, run and seed."""
    sample = data.train.select(permutation(0, 0, len(data.train))[:count])
    return sample.centre((data.preprocessing.height, data.preprocessing.width))
