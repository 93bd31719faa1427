"""Augmentation: against torchvision, and exactly where exactness is possible."""

from typing import Any

import pytest
import torch
from augmented import augment
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data import augment as augmentation
from mobilenetv2.data.augment import Batch, centre
from mobilenetv2.data.batches import LabelledPictures

EVERYTHING = AugmentConfig(
    crop=0.5, shift=0.1, rotate=20, zoom=0.1, shear=5, flip=True, colour_jitter=0.3, erase=0.5
)


def some_pictures(count: int = 50, size: tuple[int, int] = (12, 10)) -> LabelledPictures:
    torch.manual_seed(1)
    pictures = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)
    return LabelledPictures(pictures, torch.arange(count), tuple(map(str, range(count))))


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
    assert torch.equal(apply(pictures, AugmentConfig(flip=True)), pictures.flip(3))


def test_a_shift_moves_whole_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = some_pictures(2, (20, 20)).pictures
    fixed_draws(monkeypatch, right=1.0, down=0.0)  # looks 2 pixels right and up
    moved = apply(pictures, AugmentConfig(shift=0.1))
    expected = torch.zeros_like(moved)
    expected[:, :, 2:, :-2] = pictures[:, :, :-2, 2:]
    assert torch.equal(moved, expected)


@settings(deadline=None)
@given(
    shift=st.floats(0, 0.5),
    flip=st.booleans(),
    margins=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.sampled_from((1, 3)),
)
def test_whole_pixels_are_those_that_sampling_finds(
    shift: float, flip: bool, margins: tuple[int, int], channels: int
) -> None:
    assume(shift or flip)
    size = (11, 8)
    shape = (6, channels, size[0] + margins[0], size[1] + margins[1])
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8)
    config, at = AugmentConfig(shift=shift, flip=flip), torch.arange(6)
    seen = augmentation.changed(pictures, size, at, config, 3, 0)
    draws = augmentation.uniform(3, 0, at, 9)
    sampled = augmentation._affine(pictures, size, size, draws, config)
    torch.testing.assert_close(seen.float(), sampled, atol=1e-2, rtol=0)
    assert (seen.dtype == torch.uint8) is all(margin % 2 == 0 for margin in margins)


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


def test_training_may_see_other_sizes_of_the_same_view() -> None:
    """At half the size each pixel is the mean of four that evaluation sees; shifts follow."""
    pictures = some_pictures(3, (20, 28)).pictures
    batch = Batch(pictures, torch.zeros(3, dtype=torch.long))
    size, at = (16, 24), torch.arange(3)

    def seen(**changes: Any) -> torch.Tensor:
        return augment(batch, size, at, AugmentConfig(**changes), (0, 0, 0)).pictures

    half = torch.nn.functional.avg_pool2d(centre(pictures, size).float(), 2)
    torch.testing.assert_close(seen(train_size=(8, 12)), half, atol=1e-2, rtol=0)
    moves: dict[str, Any] = {"shift": 0.2, "flip": True}
    moved = torch.nn.functional.avg_pool2d(seen(**moves).float(), 2)
    torch.testing.assert_close(seen(train_size=(8, 12), **moves), moved, atol=1e-2, rtol=0)
    assert torch.equal(seen(train_size=size, crop=0.4), seen(crop=0.4))
    assert seen(train_size=9, crop=0.4, erase=1.0).shape == (3, 3, 9, 14)  # 16:24, as in evaluation


def test_crops_for_a_smaller_side_see_the_same_boxes() -> None:
    """The rows and columns that are seen do not depend on how many pixels they become."""
    position = torch.arange(40.0).repeat(40, 1)[None, None].expand(200, 1, 40, 40)
    batch = Batch(position, torch.zeros(200, dtype=torch.long))
    spans = []
    for side in (32, 24):
        config = AugmentConfig(crop=0.3, train_size=side)
        row = augment(batch, (32, 32), torch.arange(200), config, (0, 0, 0)).pictures[:, 0, 0]
        spans.append(((row[:, -1] - row[:, 0]) * side / (side - 1), row.mean(1)))
    torch.testing.assert_close(spans[0][0], spans[1][0], atol=0.3, rtol=0)
    torch.testing.assert_close(spans[0][1], spans[1][1], atol=0.3, rtol=0)


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


def test_a_mirror_is_drawn_for_one_picture_in_two() -> None:
    pictures = torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    pictures[..., 0] = 200
    mirrored = apply(pictures, AugmentConfig(flip=True))[:, 0, 0, -1] > 100
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert not apply(pictures, AugmentConfig(shift=0.1, rotate=0))[:, 0, 0, -1].any()


@pytest.mark.parametrize("size", [(28, 28), (224, 224), (31, 47), (8, 100)])
def test_shifts_and_mirrors_blur_nothing(size: tuple[int, int]) -> None:
    """Every picture is the original, moved by whole pixels; tested on a lone bright pixel."""
    count = 200
    pictures = torch.zeros(count, 1, *size, dtype=torch.uint8)
    middle = (size[0] // 2, size[1] // 2)
    pictures[:, :, middle[0], middle[1]] = 255
    moved = apply(pictures, AugmentConfig(shift=0.2, flip=True))
    peaks, places = moved.flatten(1).max(1)
    assert (peaks == 255).all()
    assert (moved.sum((1, 2, 3)) == 255).all()
    rows = places // size[1] - middle[0]
    assert rows.abs().max() <= round(0.2 * size[0])
    for share in (rows < 0, rows > 0):
        assert float(share.float().mean()) > 0.25  # both directions


def test_shear_equals_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(30.0).view(1, 1, 1, 30) * 4 + torch.arange(24.0).view(1, 1, 24, 1) * 3
    fixed_draws(monkeypatch, slant=1.0)
    ours = apply(ramp.to(torch.uint8), AugmentConfig(shear=15))
    theirs = tv.affine(ramp, 0.0, [0, 0], 1.0, [15.0, 0.0], InterpolationMode.BILINEAR)
    inside = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(ours[inside], theirs[inside], atol=0.05, rtol=0)


def test_what_comes_in_from_outside_is_black(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.full((1, 1, 21, 21), 255, dtype=torch.uint8)
    fixed_draws(monkeypatch, angle=1.0)
    turned = apply(pictures, AugmentConfig(rotate=45))[0, 0]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert turned[corner] == 0
    assert turned[10, 10] == pytest.approx(255, abs=0.01)


@pytest.mark.parametrize("place", [9, 10])
def test_brightness_and_contrast(monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """One factor at its largest, the others at 1, against the formulas of torchvision."""

    def draw(_seed: int, _epoch: int, indices: torch.Tensor, count: int) -> torch.Tensor:
        draws = torch.full((len(indices), count), 0.5)
        draws[:, place] = 1.0
        return draws

    monkeypatch.setattr(augmentation, "uniform", draw)
    grey = torch.randint(30, 150, (3, 1, 9, 9), dtype=torch.uint8).expand(3, 3, 9, 9)
    ours = apply(grey, AugmentConfig(colour_jitter=0.2))
    change = tv.adjust_brightness if place == 9 else tv.adjust_contrast
    theirs = torch.stack([change(picture / 255, 1.2) for picture in grey]) * 255
    torch.testing.assert_close(ours, theirs, atol=0.1, rtol=0)


def test_jitter_leaves_grey_pictures_grey_and_bytes_in_range() -> None:
    pictures = torch.randint(0, 256, (64, 1, 9, 9), dtype=torch.uint8).expand(64, 3, 9, 9)
    jittered = apply(pictures, AugmentConfig(colour_jitter=1.0))
    assert jittered.min() >= 0
    assert jittered.max() <= 255
    torch.testing.assert_close(jittered[:, 0], jittered[:, 1], atol=1e-3, rtol=0)
    assert jittered.std((1, 2, 3)).unique().numel() > 50  # every picture has a draw of its own


def test_the_erased_box_is_a_box() -> None:
    pictures = torch.full((500, 1, 40, 60), 200, dtype=torch.uint8)
    blank = apply(pictures, AugmentConfig(erase=1.0))[:, 0] == 0
    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])
    height, width = rows.sum(1) / 40, columns.sum(1) / 60
    assert blank.float().mean((1, 2)).min() > 0.01
    ratios = height / width
    assert ratios.min() > 1 / 4  # 1:3, and what rounding to pixels adds
    assert ratios.max() < 4
    assert ratios.log().mean().abs() < 0.1


@pytest.mark.parametrize("config", [AugmentConfig(mixup=0.3), AugmentConfig(cutmix=1.0)])
def test_an_odd_batch_is_mixed_in_proportion(config: AugmentConfig) -> None:
    """Of five one-coloured pictures, what each has of the other's colour is its label's share."""
    values = torch.tensor([10, 60, 110, 160, 210], dtype=torch.uint8)
    pictures = values.view(5, 1, 1, 1).expand(5, 1, 14, 18)
    weights = []
    for step in range(30):
        batch = Batch(pictures, torch.arange(5))
        mixed = augment(batch, (14, 18), torch.arange(5), config, (1, 0, step))
        assert mixed.other_labels is not None
        assert mixed.other_labels.tolist() == [4, 3, 2, 1, 0]
        own, other = values.float(), values.flip(0).float()
        torch.testing.assert_close(
            mixed.pictures.float().mean((1, 2, 3)),
            own * mixed.weight + other * (1 - mixed.weight),
            rtol=1e-5, atol=1e-3,
        )  # fmt: skip
        assert mixed.pictures.dtype == (torch.uint8 if config.cutmix else torch.float32)
        weights.append(mixed.weight)
    assert len(set(weights)) > 10
    assert min(weights) >= 0
    assert max(weights) <= 1
    assert torch.equal(pictures[:, 0, 0, 0], values)  # the set itself is not written to


def test_mixing_takes_turns_and_needs_two() -> None:
    both = AugmentConfig(mixup=1.0, cutmix=1.0)
    pictures = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    kinds = {
        augment(
            Batch(pictures, torch.arange(4)), (8, 8), torch.arange(4), both, (0, 0, step)
        ).pictures.dtype
        for step in range(20)
    }
    assert kinds == {torch.uint8, torch.float32}
    alone = augment(Batch(pictures[:1], torch.arange(1)), (8, 8), torch.arange(1), both, (0, 0, 0))
    assert alone.other_labels is None
    assert alone.weight == 1


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.0), (0.5, 1.0), (1.0, 2.0)])
def test_saturation(monkeypatch: pytest.MonkeyPatch, draw: float, factor: float) -> None:
    """Colours move towards grey and away from it; at 0 the three channels are one."""

    def draws(_seed: int, _epoch: int, indices: torch.Tensor, count: int) -> torch.Tensor:
        numbers = torch.full((len(indices), count), 0.5)
        numbers[:, 11] = draw
        return numbers

    monkeypatch.setattr(augmentation, "uniform", draws)
    pictures = torch.randint(90, 160, (3, 3, 9, 9), dtype=torch.uint8)
    ours = apply(pictures, AugmentConfig(colour_jitter=1.0))
    grey = pictures.float().mean(1, keepdim=True)
    torch.testing.assert_close(ours, grey + factor * (pictures - grey), atol=1e-3, rtol=0)
