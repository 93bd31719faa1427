"""Words on the command line become checked settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import model_validator

from mobilenetv2.cli.wrong_values import plain_complaints
from mobilenetv2.config import DataConfig, Section, TrainConfig, TransferConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.settings import merge, read_settings, validate

_STYLE = (tyro.conf.OmitArgPrefixes,)  # --lr, not --optimizer.lr

PURPOSE = {
    "train": "Train a classifier, or go on with a run.",
    "find-lr": "Suggest a learning rate by a range test with the settings of a training run.",
}
"""What each command that takes the settings of a training run does with them."""

Settings = TypeVar("Settings", bound=Section)


def parse(name: str, model: type[Settings], arguments: list[str]) -> Settings:
    """The settings that ``arguments`` of the command ``name`` stand for."""
    arguments = several_last(_filled(arguments), model)
    with plain_complaints(arguments):
        return tyro.cli(model, args=arguments, prog=f"mobilenetv2 {name}", config=_STYLE)


class _FirstLook(TrainConfig):
    """The same flags, to see which were given; what they add up to is checked later."""

    data: DataConfig = DataConfig(data="")
    transfer: TransferConfig = TransferConfig(weights="")
    epochs: int = 0
    batch_size: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "_FirstLook":
        return self


def read_train_config(command: str, arguments: list[str]) -> TrainConfig:
    """Default < recipe of the data set < ``--config`` file < flag.

    For ``--resume``, the run's own settings take the place of the first two.
    """
    path, arguments = take_option("--config", several_last(_filled(arguments), TrainConfig))
    helpless = [argument for argument in arguments if argument not in ("-h", "--help")]
    # Data, length and batches of the run decide the defaults of everything else.
    with plain_complaints(arguments):
        first, _ = tyro.cli(
            _FirstLook,
            args=helpless,
            prog=f"mobilenetv2 {command}",
            config=_STYLE,
            return_unknown_args=True,
        )
    from mobilenetv2.training.recipes import asked_weights, recipe_settings

    from_file = read_settings(Path(path)) if path else {}

    def over(recipe: dict[str, Any]) -> TrainConfig:
        defaults = validate(merge(recipe, from_file), f"--config {path}" if path else "recipe")
        with plain_complaints(arguments):
            return tyro.cli(
                TrainConfig,
                args=arguments,
                prog=f"mobilenetv2 {command}",
                config=_STYLE,
                default=defaults,
                description=f"{PURPOSE[command]} --config FILE reads settings from YAML first."
                "\n\nDefaults shown are those for DATA; name your folder to see its own.",
            )

    if first.resume:
        return over(_settings_of(first.resume))
    data = str(first.data.data or from_file.get("data", {}).get("data", DataConfig().data))
    epochs = first.epochs or from_file.get("epochs")
    weights = first.transfer.weights or asked_weights(from_file)
    batch_size = first.batch_size or from_file.get("batch_size")
    config = over(recipe_settings(data, epochs, weights, batch_size))
    if config.transfer.weights != "auto":
        return config
    return config.or_without_weights(over(recipe_settings(data, epochs, "none", batch_size)))


def _settings_of(run: Path) -> dict[str, Any]:
    """What a run was begun with, so that whatever differs from it was asked for."""
    from mobilenetv2.training.run_folder import RunFolder

    settings = RunFolder.open(run).read_config().model_dump(mode="json")
    return settings | {"quiet": False}  # how much is printed is asked for anew


def _filled(arguments: list[str]) -> list[str]:
    """The words, none of which is empty: an unset variable of a shell would name this folder.

    Raises:
        ConfigError: one is.
    """
    for place, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if not word.strip() or (equals and flag.startswith("--") and not value.strip()):
            before = arguments[place - 1] if place else ""
            after = f"after {before}" if before.startswith("--") else "among the names"
            raise ConfigError(f"an empty word stands {f'at {flag}' if equals else after}")
    return arguments


def several_last(arguments: list[str], model: type[Section]) -> list[str]:
    """Flags that take several numbers, moved to the end: they would take the words behind them too.

    >>> several_last(["--image-size", "28", "first-version", "--classes", "9"], TrainConfig)
    ['first-version', '--classes', '9', '--image-size', '28']
    """
    flags = set(_flags_of_several(model))
    rest, moved, waiting = list[str](), list[str](), list(arguments)
    while waiting and waiting[0] != "--":
        word = waiting.pop(0)
        if word.replace("_", "-") in flags and waiting and _is_number(waiting[0]):
            moved.append(word)
            while waiting and _is_number(waiting[0]):
                moved.append(waiting.pop(0))
        else:
            rest.append(word)
    return rest + moved + waiting


def _flags_of_several(model: type[Section]) -> Iterator[str]:
    """The flags of settings that are tuples, also where they need not be."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _flags_of_several(kind)
        elif "tuple[" in str(kind) and "Path" not in str(kind):  # pictures are no flag
            yield f"--{name.replace('_', '-')}"


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d*)?", word) is not None


def take_option(name: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of ``name`` and the arguments without it."""
    for place, argument in enumerate(arguments):
        if argument == name:
            if place + 1 == len(arguments):
                raise ConfigError(f"{name} needs a value")
            return arguments[place + 1], arguments[:place] + arguments[place + 2 :]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}="), arguments[:place] + arguments[place + 1 :]
    return None, arguments


def made(flag: str, folder: Path) -> Path:
    """The folder that ``flag`` names, made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file; name a folder" if folder.is_file() else error.strerror or error
        raise ConfigError(f"{flag} {folder}: cannot be written ({reason})") from error
    return folder
