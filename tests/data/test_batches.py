"""Batches: every picture once an epoch, in an order that can be entered anywhere."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data.batches import Batches, LabelledPictures, batch_bounds
from mobilenetv2.distributed import Processes

EVERYTHING = AugmentConfig(
    crop=0.5, shift=0.1, rotate=20, zoom=0.1, shear=5, flip=True, colour_jitter=0.3, erase=0.5
)


def some_pictures(count: int = 50, size: tuple[int, int] = (12, 10)) -> LabelledPictures:
    torch.manual_seed(1)
    pictures = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return LabelledPictures(pictures, torch.arange(count), tuple(map(str, range(count))))


@given(st.integers(1, 3000), st.integers(1, 400))
@example(3, 2)
@example(2, 2)
def test_batches_cover_everything_once(count: int, size: int) -> None:
    bounds = batch_bounds(count, size)
    joins = size == 2 and count > 2 and count % 2 == 1  # the last picture, the two before it
    assert len(bounds) == -(-count // size) - joins
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == count
    sizes = [end - start for start, end in bounds]
    assert max(sizes) <= size + joins
    if size > 1 and count > 1:
        assert min(sizes) >= 2


def test_the_number_of_steps_is_derived() -> None:
    assert len(batch_bounds(50_000, 64)) == 782


def test_every_epoch_shows_each_picture_once_in_another_order() -> None:
    batches = Batches(some_pictures(), (12, 10), 16, AugmentConfig(), seed=3)
    first, second = (
        torch.cat([batch.labels for batch in batches.epoch(epoch)]).tolist() for epoch in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(mixup=0.4, cutmix=1.0, shift=0.1)])
def test_an_epoch_can_be_entered_anywhere(config: AugmentConfig) -> None:
    batches = Batches(some_pictures(), (12, 10), 16, config, seed=3)
    whole = list(batches.epoch(4))
    for first_step in range(4):
        for a, b in zip(whole[first_step:], batches.epoch(4, first_step), strict=True):
            assert torch.equal(a.pictures, b.pictures)
            assert torch.equal(a.labels, b.labels)
            assert a.weight == b.weight


@pytest.mark.parametrize(
    "config", [EVERYTHING, AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1.0)]
)
def test_parts_of_a_batch_know_which_they_are_and_make_it_together(config: AugmentConfig) -> None:
    whole = Batches(some_pictures(), (12, 10), 16, config, seed=3)
    of_both = [
        Batches(some_pictures(), (12, 10), 16, config, seed=3, processes=Processes(rank, 2))
        for rank in (0, 1)
    ]
    parts = zip(*(batches.epoch(1) for batches in of_both), strict=True)
    for batch, (first, second) in zip(whole.epoch(1), parts, strict=True):
        if first.share is None:  # too few to divide
            assert len(first.labels) == len(batch.labels) < 16
            continue
        for part in (first, second):
            assert part.share.total == len(batch.labels)
            places = part.share.positions
            torch.testing.assert_close(part.pictures, batch.pictures[places], rtol=0, atol=1e-3)
            assert torch.equal(part.labels, batch.labels[places])
            assert part.weight == batch.weight
        together = torch.cat([first.share.positions, second.share.positions])
        assert sorted(together.tolist()) == list(range(len(batch.labels)))


@pytest.mark.parametrize("at_once", [2, 3, 100])
@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(mixup=0.4, cutmix=1.0, shift=0.1)])
def test_many_batches_at_once_are_the_same_batches(
    at_once: int, config: AugmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which takes longer to begin small work than to do it."""
    batches = Batches(some_pictures(), (12, 10), 16, config, seed=3, balanced=True)
    one_by_one = list(batches.epoch(4))
    monkeypatch.setattr(batches, "_at_once", lambda: at_once)
    for first_step in range(4):
        for a, b in zip(one_by_one[first_step:], batches.epoch(4, first_step), strict=True):
            torch.testing.assert_close(a.pictures, b.pictures, rtol=0, atol=1e-3)
            assert torch.equal(a.labels, b.labels)
            assert a.weight == b.weight


def test_a_resumed_epoch_changes_the_same_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU may round otherwise in other ones, and a resumed run promises the same bits."""
    batches = Batches(some_pictures(), (12, 10), 8, EVERYTHING, seed=3)  # seven of them
    monkeypatch.setattr(batches, "_at_once", lambda: 3)
    groups = []
    of_group = batches._changed
    monkeypatch.setattr(
        batches,
        "_changed",
        lambda draws, *rest: groups.append(draws.tolist()) or of_group(draws, *rest),
    )
    whole = list(batches.epoch(2))
    of_whole = groups.copy()
    for first_step in range(7):
        groups.clear()
        assert len(list(batches.epoch(2, first_step))) == len(whole) - first_step
        assert groups == of_whole[first_step // 3 :]


def test_a_gpu_changes_as_many_as_are_worth_it() -> None:
    def at_once(size: int, batch_size: int, device: str) -> int:
        pictures = LabelledPictures(
            torch.empty(500, 1, size, size, dtype=torch.uint8), torch.zeros(500)
        )
        batches = Batches(
            pictures, (size, size), batch_size, AugmentConfig(), 0, device=torch.device(device)
        )
        return batches._at_once()

    assert at_once(28, 128, "cpu") == 1
    assert at_once(28, 128, "cuda") == 83
    assert at_once(224, 256, "cuda") == 1


def test_without_changes_bytes_stay_bytes() -> None:
    batches = Batches(some_pictures(), (12, 10), 50, AugmentConfig(), seed=0)
    (batch,) = batches.epoch(0)
    assert batch.pictures.dtype == torch.uint8
    assert torch.equal(batch.pictures, some_pictures().pictures[batch.labels])


def test_select_keeps_names_with_pictures() -> None:
    chosen = some_pictures().select(torch.tensor([4, 2]))
    assert chosen.names == ("4", "2")
    assert chosen.labels.tolist() == [4, 2]
    assert np.array_equal(chosen.pictures, some_pictures().pictures[[4, 2]])


def test_batches_depend_on_the_seed_alone() -> None:
    def labels(seed: int) -> list[list[int]]:
        batches = Batches(some_pictures(), (12, 10), 16, EVERYTHING, seed)
        torch.manual_seed(seed + 99)  # the global state plays no part
        return [batch.labels.tolist() for batch in batches.epoch(0)]

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(1, 64, [1]), (65, 64, [63, 2]), (3, 2, [3]), (5, 2, [2, 3]), (3, 1, [1, 1, 1]), (5, 99, [5])],
)
def test_the_last_batch_of_one(count: int, size: int, sizes: list[int]) -> None:
    assert [end - start for start, end in batch_bounds(count, size)] == sizes


def test_a_set_moves_with_its_labels() -> None:
    moved = some_pictures().to(torch.device("meta"))
    assert (moved.pictures.device.type, moved.labels.device.type) == ("meta", "meta")
    assert len(moved) == len(moved.names) == 50
