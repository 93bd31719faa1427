"""Which pictures are held out from training.

Both functions answer with two arrays of indices, sorted, that together cover every picture once.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mobilenetv2.errors import DataError

Indices = NDArray[np.int64]


def stratified_split(
    labels: NDArray[np.integer], fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Holds out the same fraction of every class, at random.

    Each class gives its count times ``fraction``, rounded, but at least one picture and at most all
    but one; a class with a single picture keeps it for training.

    Args:
        labels: Integers of shape (N,).
        fraction: Of each class to hold out, above 0 and below 1.
        seed: Of the draw. The draw of one class does not depend on the others.

    Returns:
        Indices for training, and indices held out.

    Raises:
        DataError: ``fraction`` is not between 0 and 1.

    >>> train, held_out = stratified_split(np.repeat([0, 1], [10, 30]), 0.2, seed=0)
    >>> len(train), len(held_out)
    (32, 8)
    """
    _check_fraction(fraction)
    labels = np.asarray(labels)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # Half up, not to even, so that 0.5 of 5 and of 7 lean the same way.
        count = min(max(int(len(members) * fraction + 0.5), 1), len(members) - 1)
        draw = np.random.default_rng((seed, int(label)))
        held_out[draw.permutation(members)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def content_split(
    groups: Sequence[str], labels: Sequence[int], fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Holds out pictures by what they show, so that a growing folder keeps its split.

    A picture's side follows from its group and the seed alone: a hash of both, read as a number
    from 0 to 1, is below ``fraction`` or not. Neither names, order nor the other pictures matter.

    What this guarantees:

    * Pictures of one group, such as copies, bursts and resized versions, are on the same side.
    * A new picture with a group of its own moves no other picture.
    * A class with two groups or more has pictures on both sides. Where the hashes alone would leave
      a side empty, the group whose hash is nearest to the other side changes over (unless that
      would take the last training pictures of another class). A class with one group trains on it.

    What no rule can guarantee without remembering earlier splits: that nothing moves when a new
    picture joins two old groups, becomes the representative of its group (see
    ``fingerprints.group_names``), or comes closer to the other side in a class so small that a side
    would be empty. As every group is decided by itself, the held-out count of a class scatters
    around ``fraction`` like that of independent draws.

    Args:
        groups: For each picture, the name of its near-duplicate group.
        labels: For each picture, its class.
        fraction: Of the groups to hold out on average, above 0 and below 1.
        seed: Of the hashes. To split what is left once more, take another seed: with the same one
            all that remains has hashes above ``fraction``.

    Returns:
        Indices for training, and indices held out.

    Raises:
        DataError: ``fraction`` is not between 0 and 1.

    >>> old = content_split(["a", "b", "c"], [0, 0, 0], 0.5, seed=1)
    >>> new = content_split(["a", "b", "c", "d"], [0, 0, 0, 0], 0.5, seed=1)
    >>> set(old[0]) <= set(new[0]) and set(old[1]) <= set(new[1])
    True
    """
    _check_fraction(fraction)
    position = {group: _position(group, seed) for group in groups}
    held_out = {group for group in position if position[group] < fraction}
    classes: dict[int, set[str]] = {}
    for group, label in zip(groups, labels, strict=True):
        classes.setdefault(int(label), set()).add(group)
    members = [classes[label] for label in sorted(classes)]

    for groups_of_class in members:
        if groups_of_class <= held_out:
            held_out.remove(max(groups_of_class, key=lambda group: (position[group], group)))
    for groups_of_class in members:
        if len(groups_of_class) > 1 and not groups_of_class & held_out:
            for group in sorted(groups_of_class, key=lambda group: (position[group], group)):
                if not any(other - held_out == {group} for other in members):
                    held_out.add(group)
                    break

    side = np.fromiter((group in held_out for group in groups), dtype=bool, count=len(groups))
    return np.flatnonzero(~side), np.flatnonzero(side)


def _position(group: str, seed: int) -> float:
    """A number from 0 to 1 that depends on group and seed alone."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataError(f"The held-out fraction must lie between 0 and 1, not be {fraction}.")
