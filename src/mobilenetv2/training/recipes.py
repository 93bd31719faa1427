"""Settings that were measured to suit a data set; each is a YAML file in ``mobilenetv2/recipes``.

A recipe's header says what it is for, the command that uses it and what that reached. Folders have
no name to go by, so a look at a few of their pictures chooses between three recipes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from mobilenetv2.config import TrainConfig, TransferConfig
from mobilenetv2.data.colours import GREY_MODES
from mobilenetv2.data.folders import scan_folder
from mobilenetv2.data.named_sets import NAMES
from mobilenetv2.data.pictures import SMALL_SIDE, UnreadablePicture, read_frame
from mobilenetv2.errors import DataError
from mobilenetv2.settings import merge, nest, parse_settings, validate

LOOK_AT = 20
FEW = 2_000
"""Training pictures of a folder; below this many, small ones get smaller batches (few.yaml)."""
ENOUGH_STEPS = 700
"""Steps that few pictures get by more epochs than the recipe's."""
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
        recipe = recipe_settings(data, given.get("epochs"), weights)
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


def recipe_settings(data: str, epochs: object = None, weights: object = None) -> dict[str, Any]:
    """The recipe of a data set, by its name, or by how many pictures a folder has and their looks.

    Args:
        data: a name or a folder.
        epochs: what was asked for instead of the recipe's number; the warm-up takes at most a third
            of them.
        weights: where first weights come from; the recipe's own choice if left out. What suits
            pretrained ones is laid over the recipe.

    >>> whole, short = recipe_settings("mnist"), recipe_settings("mnist", epochs=1.5)
    >>> whole["epochs"], whole["schedule"], short["schedule"]
    (20, {'warmup_epochs': 1}, {'warmup_epochs': 0.5})
    """
    settings = _read(data) if data in NAMES else _folder_settings(Path(data))
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


def _folder_settings(folder: Path) -> dict[str, Any]:
    """The recipe for a folder's pictures, with enough steps where they are few."""
    try:
        files = [file.path for file in scan_folder(folder).train]
    except DataError:
        # What is wrong with it will be said where it is read; nothing is downloaded before that.
        return _read("small-colour")
    kind = _kind_of(files)
    settings = _read(kind)
    if kind == "photos" or len(files) >= FEW:
        return settings
    settings = merge(settings, _read("few"))
    enough = math.ceil(ENOUGH_STEPS * settings["batch_size"] / len(files))
    return settings | {"epochs": min(max(enough, settings["epochs"]), MOST_EPOCHS)}


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
