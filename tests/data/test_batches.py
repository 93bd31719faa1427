"""Keyed draws, batches and augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data import augment as augmentation
from mobilenetv2.data.augment import Batch, augment, centre
from mobilenetv2.data.batches import Batches, LabelledPictures, batch_bounds
from mobilenetv2.data.draws import permutation, uniform

EVERYTHING = AugmentConfig(
    crop=0.5, shift=0.1, rotate=20, zoom=0.1, shear=5, flip=True, colour_jitter=0.3, erase=0.5
)


def some_pictures(count: int = 50, size: tuple[int, int] = (12, 10)) -> LabelledPictures:
    torch.manual_seed(1)
    pictures = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return LabelledPictures(pictures, torch.arange(count), tuple(map(str, range(count))))


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform(0, 0, torch.arange(100_000), 4)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 50)
    expected = draws.numel() / 50
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 100  # 49 degrees of freedom: p below 1e-4
    other_epoch, other_seed = (
        uniform(0, 1, torch.arange(100_000), 4),
        uniform(1, 0, torch.arange(100_000), 4),
    )
    columns = torch.cat([draws, other_epoch, other_seed], 1)
    correlation = torch.corrcoef(columns.T) - torch.eye(12)
    assert correlation.abs().max() < 0.02
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))
    assert abs(float(neighbours[0, 1])) < 0.02


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_draws_accept_every_seed(seed: int, epoch: int) -> None:
    draws = uniform(seed, epoch, torch.arange(64), 2)
    assert len(draws.unique()) > 100
    assert sorted(permutation(seed, epoch, 9).tolist()) == list(range(9))


@given(st.integers(1, 3000), st.integers(1, 400))
def test_batches_cover_everything_once(count: int, size: int) -> None:
    bounds = batch_bounds(count, size)
    assert len(bounds) == -(-count // size)
    assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
    assert bounds[-1][1] == count
    sizes = [end - start for start, end in bounds]
    assert max(sizes) <= size
    if size > 2 and count > 1:
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


def test_the_same_picture_gets_the_same_draw_in_any_company() -> None:
    set_ = some_pictures()
    alone = augment(
        Batch(set_.pictures[7:8], set_.labels[7:8]), (12, 10), torch.tensor([7]), EVERYTHING,
        (0, 5, 0),
    )  # fmt: skip
    order = torch.tensor([3, 7, 9])
    together = augment(
        Batch(set_.pictures[order], set_.labels[order]), (12, 10), order, EVERYTHING, (0, 5, 2)
    )
    torch.testing.assert_close(alone.pictures[0], together.pictures[1])
    assert not torch.allclose(together.pictures[0], together.pictures[2])


def test_without_changes_bytes_stay_bytes() -> None:
    batches = Batches(some_pictures(), (12, 10), 50, AugmentConfig(), seed=0)
    (batch,) = batches.epoch(0)
    assert batch.pictures.dtype == torch.uint8
    assert torch.equal(batch.pictures, some_pictures().pictures[batch.labels])


def fixed_draws(monkeypatch: pytest.MonkeyPatch, **at: float) -> None:
    """Let the draws be 0.5 (no change) but for some named ones."""
    places = {"angle": 0, "slant": 1, "scale": 2, "right": 3, "down": 4, "mirror": 5}

    def draw(_seed: int, _epoch: int, indices: torch.Tensor, count: int) -> torch.Tensor:
        draws = torch.full((len(indices), count), 0.5)
        for name, value in at.items():
            draws[:, places[name]] = value
        return draws

    monkeypatch.setattr(augmentation, "uniform", draw)


def apply(pictures: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    count = len(pictures)
    size = (pictures.shape[2], pictures.shape[3])
    batch = Batch(pictures, torch.zeros(count, dtype=torch.long))
    return augment(batch, size, torch.arange(count), config, (0, 0, 0)).pictures


def test_a_mirror_image_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = some_pictures(3).pictures
    fixed_draws(monkeypatch, mirror=0.1)
    torch.testing.assert_close(
        apply(pictures, AugmentConfig(flip=True)), pictures.flip(3).float(), atol=1e-2, rtol=0
    )


def test_a_shift_moves_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = some_pictures(2, (20, 20)).pictures
    fixed_draws(monkeypatch, right=1.0, down=0.0)  # looks 2 pixels right and up
    moved = apply(pictures, AugmentConfig(shift=0.1))
    expected = torch.zeros_like(moved)
    expected[:, :, 2:, :-2] = pictures[:, :, :-2, 2:].float()
    torch.testing.assert_close(moved, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    ("config", "draw", "angle", "scale"),
    [
        (AugmentConfig(rotate=30), {"angle": 1.0}, -30.0, 1.0),
        (AugmentConfig(zoom=0.25), {"scale": 1.0}, 0.0, 1.25),
    ],
)
def test_rotation_and_zoom_equal_torchvision(
    monkeypatch: pytest.MonkeyPatch,
    config: AugmentConfig,
    draw: dict[str, float],
    angle: float,
    scale: float,
) -> None:
    ramp = torch.arange(30.0).view(1, 1, 1, 30) * 4 + torch.arange(24.0).view(1, 1, 24, 1) * 3
    pictures = ramp.to(torch.uint8)
    fixed_draws(monkeypatch, **draw)
    ours = apply(pictures, config)
    theirs = [
        tv.affine(pictures.float(), sign * angle, [0, 0], scale, [0.0], InterpolationMode.BILINEAR)
        for sign in (1, -1)
    ]
    inside = (..., slice(8, -8), slice(8, -8))
    assert min(float((ours - other)[inside].abs().max()) for other in theirs) < 0.05


def test_crops_stay_inside_and_cover_the_asked_area() -> None:
    pictures = torch.full((500, 1, 40, 40), 255, dtype=torch.uint8)
    batch = Batch(pictures, torch.zeros(500, dtype=torch.long))
    config = AugmentConfig(crop=0.3)
    cut = augment(batch, (32, 32), torch.arange(500), config, (0, 0, 0)).pictures
    assert cut.shape == (500, 1, 32, 32)
    assert cut.min() > 240  # nothing black came in from outside
    position = torch.arange(40.0).repeat(40, 1)[None, None].expand(500, 1, 40, 40)
    seen = augment(Batch(position, batch.labels), (32, 32), torch.arange(500), config, (0, 0, 0))
    widths = (seen.pictures[:, 0, 0, -1] - seen.pictures[:, 0, 0, 0]) * 32 / 31 / 40
    assert widths.min() < 0.6
    assert widths.max() > 0.95


def test_erasing_blanks_the_asked_share() -> None:
    pictures = torch.full((2000, 1, 32, 32), 200, dtype=torch.uint8)
    batch = Batch(pictures, torch.zeros(2000, dtype=torch.long))
    blanked = augment(
        batch, (32, 32), torch.arange(2000), AugmentConfig(erase=0.25), (0, 0, 0)
    ).pictures
    shares = (blanked == 0).float().mean((1, 2, 3))
    assert float((shares > 0).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert float(shares[shares > 0].min()) > 0
    assert float(shares.max()) < 0.36


def test_mixup_blends_and_cutmix_pastes_in_proportion() -> None:
    pictures = torch.stack([torch.zeros(1, 16, 16), torch.full((1, 16, 16), 100.0)]).byte()
    batch = Batch(pictures, torch.tensor([0, 1]))
    for step in range(20):
        mixed = augment(batch, (16, 16), torch.arange(2), AugmentConfig(mixup=0.5), (0, 0, step))
        assert mixed.other_labels is not None
        assert mixed.other_labels.tolist() == [1, 0]
        expected = torch.tensor([100 * (1 - mixed.weight), 100 * mixed.weight])
        torch.testing.assert_close(mixed.pictures.mean((1, 2, 3)), expected)
        pasted = augment(batch, (16, 16), torch.arange(2), AugmentConfig(cutmix=1), (0, 0, step))
        share = float((pasted.pictures[0] == 0).float().mean())
        assert share == pytest.approx(pasted.weight)


@settings(deadline=None)
@given(margin=st.integers(0, 9))
def test_the_centre_is_the_middle(margin: int) -> None:
    pictures = torch.zeros(1, 1, 10 + margin, 12 + margin)
    top = left = margin // 2
    pictures[:, :, top : top + 10, left : left + 12] = 1
    assert bool((centre(pictures, (10, 12)) == 1).all())


def test_select_keeps_names_with_pictures() -> None:
    chosen = some_pictures().select(torch.tensor([4, 2]))
    assert chosen.names == ("4", "2")
    assert chosen.labels.tolist() == [4, 2]
    assert np.array_equal(chosen.pictures, some_pictures().pictures[[4, 2]])
