"""Classes of very different size, made to count alike."""

import torch
from torch import Tensor

from mobilenetv2.data.draws import permutation


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """What a picture of each class counts for, so that every class counts the same in all.

    Args:
        labels: int64 N.
        classes: K.

    Returns:
        float32 K, 1 on average over the pictures; 0 for a class without pictures.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), 2)
    tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels, minlength=classes)
    return torch.where(counts > 0, len(labels) / (classes * counts.clamp(min=1)), 0.0)


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """An epoch of as many draws as there are pictures, in which all classes come equally often.

    A small class is passed over several times, in another order each time; of a large one, only a
    part has its turn, another one in every epoch.

    Args:
        labels: int64 N.
        seed: of the run.
        epoch: counted from 0.

    Returns:
        int64 N: the place of a picture in the set, plus N for each time that it was drawn before in
        this epoch. So every draw has a number of its own.

    >>> order = balanced_order(torch.tensor([0, 0, 0, 0, 0, 1]), seed=0, epoch=0) % 6
    >>> sorted(order.tolist()).count(5)
    3
    """
    count, present = len(labels), labels.unique()
    drawn = []
    for place, label in enumerate(present.tolist()):
        members = (labels == label).nonzero().flatten()
        wanted = count // len(present) + (place < count % len(present))
        times = -(-wanted // len(members))
        # A seed of its own for each class, so that no two permutations of a run are the same draw.
        own = (seed + (label + 1) * 0x9E3779B97F4A7C15) % 2**63
        passes = [
            members[permutation(own, epoch * times + time, len(members))] + count * time
            for time in range(times)
        ]
        drawn.append(torch.cat(passes)[:wanted])
    order = torch.cat(drawn)
    return order[permutation(seed, epoch, count)]
