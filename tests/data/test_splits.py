import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenetv2.data.splits import content_split, stratified_split
from mobilenetv2.errors import DataError


def digest(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def covers(split, count):
    return sorted([*split[0], *split[1]]) == list(range(count))


@given(st.lists(st.integers(0, 5), max_size=80), st.floats(0.01, 0.99), st.integers(0, 5))
def test_stratified_split_takes_the_fraction_of_every_class(labels, fraction, seed):
    labels = np.array(labels, dtype=np.int64)
    train, held_out = stratified_split(labels, fraction, seed)
    assert covers((train, held_out), len(labels))
    for label in np.unique(labels):
        count, held = (labels == label).sum(), (labels[held_out] == label).sum()
        if count == 1:
            assert held == 0
        else:
            assert 1 <= held <= count - 1
            assert abs(held - count * fraction) <= 0.5 or held in (1, count - 1)


def test_stratified_split_is_drawn_from_the_seed():
    labels = np.arange(1000) % 7
    one, same, other = (stratified_split(labels, 0.2, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert len(np.intersect1d(one, other)) < 80  # 200 drawn twice share 40 on average
    assert len(one) == 6 * 29 + 28  # six classes of 143 and one of 142


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=60),
    st.floats(0.05, 0.95),
    st.integers(0, 9),
)
def test_content_split_keeps_groups_together_and_classes_on_both_sides(pictures, fraction, seed):
    groups, labels = [digest(g) for g, _ in pictures], [label for _, label in pictures]
    train, held_out = content_split(groups, labels, fraction, seed)
    assert covers((train, held_out), len(pictures))
    assert not {groups[i] for i in train} & {groups[i] for i in held_out}
    # Every class trains; and when no group has two labels, every class with two groups is measured.
    for label in set(labels):
        of_class = {g for g, its in zip(groups, labels, strict=True) if its == label}
        assert label in {labels[i] for i in train}
        if len(of_class) > 1 and len(set(pictures)) == len({g for g, _ in pictures}):
            assert label in {labels[i] for i in held_out}


def test_new_pictures_move_no_old_ones():
    draw = np.random.default_rng(0)
    groups = [digest(number) for number in range(2000)]
    labels = draw.integers(0, 4, 2000).tolist()
    old = set(content_split(groups[:1000], labels[:1000], 0.2, seed=3)[1])
    new = set(content_split(groups, labels, 0.2, seed=3)[1])
    assert {index for index in new if index < 1000} == old
    # Neither order nor the labels' numbers matter.
    order = draw.permutation(2000)
    shuffled = content_split(
        [groups[i] for i in order], [9 - labels[i] for i in order], 0.2, seed=3
    )
    assert {int(order[i]) for i in shuffled[1]} == new


def test_the_held_out_share_and_the_seed():
    groups, labels = [digest(number) for number in range(5000)], [0, 1] * 2500
    sides = [content_split(groups, labels, 0.3, seed)[1] for seed in range(2)]
    for side in sides:
        assert abs(len(side) / 5000 - 0.3) < 0.03  # 4.6 standard deviations
    both = len(np.intersect1d(*sides)) / 5000
    assert abs(both - 0.09) < 0.02  # independent


def test_a_repair_never_takes_the_last_training_picture_of_another_class():
    # Class 1 has only group a, which class 0 shares: a may not be the one that is held out.
    for seed in range(20):
        train, held_out = content_split(["a", "b", "a"], [0, 0, 1], 0.01, seed)
        assert (train.tolist(), held_out.tolist()) == ([0, 2], [1])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside_are_refused(fraction):
    with pytest.raises(DataError, match="between 0 and 1"):
        stratified_split(np.zeros(4, dtype=int), fraction, 0)
    with pytest.raises(DataError, match="between 0 and 1"):
        content_split(["a"], [0], fraction, 0)
