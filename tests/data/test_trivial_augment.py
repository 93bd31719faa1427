"""TrivialAugment: each operation is torchvision's, and every picture gets one."""

import math

import pytest
import torch
from augmented import augment
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from mobilenetv2.config import AugmentConfig
from mobilenetv2.data import trivial_augment
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.draws import uniform
from mobilenetv2.data.trivial_augment import MOVES, OPERATIONS, moved, recoloured


def draw(name: str, strength: float, sign: int) -> torch.Tensor:
    """The numbers with which a picture gets that operation."""
    place = (OPERATIONS.index(name) + 0.5) / len(OPERATIONS)
    return torch.tensor([[place, strength, 0.25 if sign < 0 else 0.75]])


def blocks(channels: int = 3) -> torch.Tensor:
    torch.manual_seed(0)
    coarse = torch.randint(20, 220, (1, channels, 8, 10)).float()
    smooth = torch.nn.functional.interpolate(coarse, (40, 50), mode="bicubic", align_corners=False)
    return smooth.clamp(0, 255).round().to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in MOVES])
def test_colours_are_changed_as_torchvision_does(
    name: str, sign: int, strength: float, channels: int
) -> None:
    picture = blocks(channels)
    factor = 1 + sign * strength * 0.99
    expected = {
        "identity": lambda: picture,
        "brightness": lambda: reference.adjust_brightness(picture, factor),
        "colour": lambda: reference.adjust_saturation(picture, factor),
        "contrast": lambda: reference.adjust_contrast(picture, factor),
        "sharpness": lambda: reference.adjust_sharpness(picture, factor),
        "posterize": lambda: reference.posterize(picture, 8 - round(strength * 6)),
        "solarize": lambda: reference.solarize(picture, 255 * (1 - strength)),
        "autocontrast": lambda: reference.autocontrast(picture),
        "equalize": lambda: reference.equalize(picture),
    }[name]()
    ours = recoloured(picture, draw(name, strength, sign))
    assert ours.dtype == torch.float32
    # torchvision rounds greys before it blends, which the factor may double.
    assert (ours - expected.float()).abs().max() <= 2.5


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", MOVES)
def test_pixels_move_as_in_torchvision(name: str, strength: float, sign: int) -> None:
    picture = blocks()
    config = AugmentConfig(trivial=True)
    height, width = picture.shape[-2:]
    amount = sign * strength
    angle, shear, translate = 0.0, [0.0, 0.0], [0, 0]
    match name:
        case "rotate":
            angle = -amount * 135  # torchvision counts clockwise
        case "shear_x" | "shear_y":
            shear["xy".index(name[-1])] = math.degrees(math.atan(amount * 0.99))
        case "translate_x":
            translate[0] = -round(amount * width / 7)
        case "translate_y":
            translate[1] = -round(amount * height / 7)
    expected = reference.affine(
        picture.float(), angle, translate, 1.0, shear, InterpolationMode.BILINEAR
    )
    maps = moved(draw(name, strength, sign), height, width)
    maps[:, :, 2] = maps[:, :, 2].round()  # torchvision shifts by whole pixels only
    ours = _applied(picture, maps, config)
    inside = expected.amin(1, keepdim=True) > 0
    assert inside.float().mean() > 0.2
    difference = (ours - expected).abs().amax(1, keepdim=True)[inside]
    assert difference.quantile(0.98) < 6


def _applied(picture: torch.Tensor, maps: torch.Tensor, config: AugmentConfig) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mobilenetv2.data.augment.moved", lambda *_: maps)
        patch.setattr("mobilenetv2.data.augment.recoloured", lambda pictures, _: pictures)
        batch = Batch(picture, torch.zeros(1, dtype=torch.long))
        size = (picture.shape[2], picture.shape[3])
        return augment(batch, size, torch.zeros(1, dtype=torch.long), config, (0, 0, 0)).pictures


def test_all_operations_come_equally_often() -> None:
    draws = uniform(0, 0, torch.arange(14_000), trivial_augment.DRAWS)
    operation, strength, sign = trivial_augment._decide(draws)
    counts = torch.bincount(operation, minlength=len(OPERATIONS))
    assert ((counts - 1000).abs() < 150).all()
    assert abs(float(strength.mean()) - 0.5) < 0.02
    assert abs(float(sign.mean())) < 0.05


def test_a_picture_is_changed_alike_in_any_batch() -> None:
    pictures = torch.cat([blocks(), blocks().flip(3)] * 8)
    labels, config = torch.zeros(16, dtype=torch.long), AugmentConfig(trivial=True, crop=0.5)
    places = torch.arange(16)
    whole = augment(Batch(pictures, labels), (32, 32), places, config, (0, 3, 0)).pictures
    part = augment(Batch(pictures[5:9], labels[5:9]), (32, 32), places[5:9], config, (0, 3, 7))
    torch.testing.assert_close(whole[5:9], part.pictures)
    assert whole.shape == (16, 3, 32, 32)
    assert 0 <= whole.min() <= whole.max() <= 255
    other = augment(Batch(pictures, labels), (32, 32), places, config, (0, 4, 0)).pictures
    assert not torch.equal(whole, other)
