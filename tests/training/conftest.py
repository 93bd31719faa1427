"""A small set that trains in a moment, for tests that need many runs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mobilenetv2
from mobilenetv2.config import TrainConfig
from mobilenetv2.training.loop import Training


@pytest.fixture(scope="session")
def few_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of nine grey pictures, 8×8."""
    root = tmp_path_factory.mktemp("few")
    random = np.random.default_rng(0)
    for label, low in (("dark", 20), ("light", 190)):
        (root / label).mkdir()
        for number in range(9):
            pixels = random.integers(low, low + 60, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def quick_settings(few_pictures: Path) -> Callable[..., TrainConfig]:
    """A function that gives settings for two epochs of three steps, into a folder."""

    def give(out: Path, **changes: Any) -> TrainConfig:
        options: dict[str, Any] = {
            "width": 0.05, "epochs": 2, "batch_size": 6, "lr": 0.05, "warmup_epochs": 0,
            "val_fraction": 0.2, "fast_ops": "off", "out": out, "data": str(few_pictures),
        }  # fmt: skip
        return mobilenetv2.configure(**{**options, **changes})

    return give


@pytest.fixture
def quick(
    quick_settings: Callable[..., TrainConfig], tmp_path: Path, undrawn: None
) -> Callable[..., TrainConfig]:
    """A function that gives those settings; the runs of this test draw nothing."""

    def give(name: str = "run", **changes: Any) -> TrainConfig:
        return quick_settings(tmp_path / name, **changes)

    return give


@pytest.fixture(scope="session")
def cut_off(
    quick_settings: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was cut off after its first epoch."""
    out = tmp_path_factory.mktemp("cut_off") / "run"
    original = Training._train_epoch

    def first_epoch(self: Training, *arguments: Any) -> None:
        if self.epoch == 1:
            raise EOFError
        original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(EOFError):
        patch.setattr(Training, "_train_epoch", first_epoch)
        mobilenetv2.train(quick_settings(out, ema=0.5))
    return out


@pytest.fixture
def unfinished(cut_off: Path, tmp_path: Path, quick: object) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(cut_off, tmp_path / "unfinished"))
