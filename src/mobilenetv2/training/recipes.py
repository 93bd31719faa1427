"""Settings that were measured to suit a data set; each is a YAML file in ``mobilenetv2/recipes``.

A recipe's header says what it is for, the command that uses it and what that reached. Folders have
no name to go by, so a look at a few of their pictures chooses between three recipes, and small
pictures that are few get more steps.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from mobilenetv2.config import DataConfig, TrainConfig, TransferConfig
from mobilenetv2.data.colours import GREY_MODES
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.named_sets import NAMES
from mobilenetv2.data.pictures import SMALL_SIDE, UnreadablePicture, read_frame
from mobilenetv2.errors import DataError
from mobilenetv2.settings import merge, nest, parse_settings, validate

LOOK_AT = 20
STEPS_OF_AN_EPOCH = 40
"""Where small pictures are too few for as many, batches are smaller than the recipe's."""
SMALLEST_BATCH = 32
STEPS = 700
"""Where these batches are too few for as many in a run, it has more epochs than the recipe's."""
HIGHEST_RATE = 0.1
"""For a batch as large as the recipe's; with more, few pictures made the loss explode."""
MOST_EPOCHS = 120
"""Each also costs a look at the validation pictures and a checkpoint."""


def configure(data: str = "digits", **settings: Any) -> TrainConfig:
    """Settings for training on ``data``: its recipe, changed by what is given.

    Args:
        data: a name or a folder.
        settings: any setting by its own name, such as ``lr=0.2``, or a section.

    Raises:
        ConfigError: a setting is unknown or out of range.

    >>> configure("mnist", lr=0.2).optimizer.lr
    0.2
    """
    given = nest({"data": data, **settings})

    def with_recipe(weights: object) -> TrainConfig:
        recipe = recipe_settings(data, given.get("epochs"), weights, given.get("batch_size"))
        return validate(merge(recipe, given), "settings")

    config = with_recipe(asked_weights(given))
    if config.transfer.weights != "auto":
        return config
    return config.or_without_weights(with_recipe("none"))


def asked_weights(given: Mapping[str, Any]) -> object:
    """What nested settings say of first weights, perhaps nothing, perhaps nonsense."""
    transfer = given.get("transfer")
    if isinstance(transfer, TransferConfig):
        return transfer.weights
    return transfer.get("weights") if isinstance(transfer, dict) else None


def recipe_settings(
    data: str, epochs: object = None, weights: object = None, batch_size: object = None
) -> dict[str, Any]:
    """The recipe of a data set, by its name, or by how many pictures a folder has and their looks.

    Args:
        data: a name or a folder.
        epochs: what was asked for instead of the recipe's number; the warm-up takes at most a third
            of them.
        weights: where first weights come from; the recipe's own choice if left out. What suits
            pretrained ones is laid over the recipe.
        batch_size: what was asked for instead of the recipe's.

    >>> whole, short = recipe_settings("mnist"), recipe_settings("mnist", epochs=1.5)
    >>> whole["epochs"], whole["schedule"], short["schedule"]
    (20, {'warmup_epochs': 1}, {'warmup_epochs': 0.5})
    """
    settings = _read(data) if data in NAMES else _folder_settings(Path(data), batch_size)
    if weights is None:
        weights = asked_weights(settings)
    if weights not in (None, "none"):
        settings = merge(settings, _read("pretrained"))
    if isinstance(epochs, int | float) and epochs > 0:
        schedule = settings["schedule"]
        schedule["warmup_epochs"] = min(schedule["warmup_epochs"], epochs / 3)
    return settings


def _read(layer: str) -> dict[str, Any]:
    recipe = resources.files("mobilenetv2") / "recipes" / f"{layer}.yaml"
    return parse_settings(recipe.read_text(encoding="utf-8"), recipe.name)


def _folder_settings(folder: Path, batch_size: object) -> dict[str, Any]:
    """The recipe for a folder's pictures, by how they look, and how many there are of small ones.

    Photos are to start from pretrained weights, which need few steps.
    """
    try:
        found = scan_folder(folder)
    except DataError:
        # What is wrong with it will be said where it is read; nothing is downloaded before that.
        return _read("small-colour")
    kind = _kind_of([file.path for file in found.train])
    if kind == "photos":
        return _read(kind)
    held_out = 0.0 if "val" in found.splits else DataConfig().val_fraction
    return with_enough_steps(_read(kind), len(found.train) * (1 - held_out), batch_size)


def with_enough_steps(
    settings: Mapping[str, Any], pictures: float, batch_size: object = None
) -> dict[str, Any]:
    """A recipe with smaller batches, and then with more epochs, where pictures are few.

    A batch of a quarter gets half the rate. MNIST with 20, 50 and 150 pictures of each digit came
    to 93.8, 95.7 and 97.7 % so, and to 71.5, 89.9 and 96.9 % with batches of 128 in 30 epochs
    (2,000 test pictures, means of three draws; `benchmarks/few_pictures.py`).

    Args:
        settings: with ``epochs``, ``batch_size`` and a rate.
        pictures: in training.
        batch_size: what was asked for instead of what suits so few.

    >>> recipe = {"epochs": 30, "batch_size": 128, "optimizer": {"lr": 0.2}}
    >>> with_enough_steps(recipe, 180)
    {'epochs': 120, 'batch_size': 32, 'optimizer': {'lr': 0.05}}
    >>> with_enough_steps(recipe, 50_000) == recipe
    True
    """
    usual, rate = settings["batch_size"], settings["optimizer"]["lr"]
    if pictures >= STEPS_OF_AN_EPOCH * usual:
        return dict(settings)
    batch = usual
    if isinstance(batch_size, int) and batch_size > 0:
        batch = batch_size
    else:
        while batch > SMALLEST_BATCH and pictures < STEPS_OF_AN_EPOCH * batch:
            batch //= 2
    rate = min(rate, HIGHEST_RATE) * math.sqrt(min(batch / usual, 1))
    epochs = min(math.ceil(STEPS * batch / pictures), MOST_EPOCHS)
    changed = {
        "epochs": max(settings["epochs"], epochs),
        "batch_size": batch,
        "optimizer": {"lr": float(f"{rate:.2g}")},
    }
    return merge(settings, changed)


def _kind_of(files: Sequence[Path]) -> str:
    """Photos, or small pictures in colour or grey: mirroring harms letters and digits."""
    step = max(1, len(files) // LOOK_AT)
    spread = (file for first in range(step) for file in files[first::step])
    frames = list(islice(_frames(spread), LOOK_AT))
    small = all(max(size) <= SMALL_SIDE for _, size in frames)
    grey = bool(frames) and all(mode in GREY_MODES for mode, _ in frames)
    if not small:
        return "photos"
    return "small-grey" if grey else "small-colour"


def _frames(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, int]]]:
    for file in files:
        with suppress(UnreadablePicture):
            yield read_frame(file)
