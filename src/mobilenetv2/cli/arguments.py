"""Words on the command line become checked settings."""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

import tyro
from pydantic import model_validator

from mobilenetv2.config import DataConfig, Section, TrainConfig, TransferConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.settings import merge, read_settings, validate

_STYLE = (tyro.conf.OmitArgPrefixes,)  # --lr, not --optimizer.lr

_PURPOSE = {
    "train": "Train a classifier, or go on with a run.",
    "find-lr": "Suggest a learning rate by a range test with the settings of a training run.",
}
"""What each command that takes the settings of a training run does with them."""

Settings = TypeVar("Settings", bound=Section)


def parse(name: str, model: type[Settings], arguments: list[str]) -> Settings:
    """The settings that ``arguments`` of the command ``name`` stand for."""
    with _plain_complaints():
        return tyro.cli(model, args=arguments, prog=f"mobilenetv2 {name}", config=_STYLE)


@contextmanager
def _plain_complaints() -> Iterator[None]:
    """A block whose complaints on stderr leave out which Python types were tried in vain."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    finally:
        sys.stderr.write(_without_types(said.getvalue()))


def _without_types(complaint: str) -> str:
    """A box of tyro's without the paragraph "Got errors"; the one before says what is expected."""
    kept: list[str] = []
    is_left_out = False
    for line in complaint.splitlines(keepends=True):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
        if plain.startswith("│ Got errors:"):
            is_left_out = True
            kept.pop()  # an empty line
        elif plain.startswith(("│ ─", "╰")):
            is_left_out = False
        if not is_left_out:
            kept.append(line)
    return "".join(kept)


class _FirstLook(TrainConfig):
    """The same flags, to see which were given; what they add up to is checked later."""

    data: DataConfig = DataConfig(data="")
    transfer: TransferConfig = TransferConfig(weights="")
    epochs: int = 0

    @model_validator(mode="after")
    def _fits_together(self) -> "_FirstLook":
        return self


def read_train_config(command: str, arguments: list[str]) -> TrainConfig:
    """Default < recipe of the data set < ``--config`` file < flag.

    For ``--resume``, the run's own settings take the place of the first two.
    """
    path, arguments = take_option("--config", arguments)
    helpless = [argument for argument in arguments if argument not in ("-h", "--help")]
    # Data and length of the run decide the defaults of everything else.
    with _plain_complaints():
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
        with _plain_complaints():
            return tyro.cli(
                TrainConfig,
                args=arguments,
                prog=f"mobilenetv2 {command}",
                config=_STYLE,
                default=defaults,
                description=f"{_PURPOSE[command]} --config FILE reads settings from YAML first."
                "\n\nDefaults shown are those for DATA; name your folder to see its own.",
            )

    if first.resume:
        return over(_settings_of(first.resume))
    data = str(first.data.data or from_file.get("data", {}).get("data", DataConfig().data))
    epochs = first.epochs or from_file.get("epochs")
    config = over(recipe_settings(data, epochs, first.transfer.weights or asked_weights(from_file)))
    if config.transfer.weights != "auto":
        return config
    return config.or_without_weights(over(recipe_settings(data, epochs, "none")))


def _settings_of(run: Path) -> dict[str, Any]:
    """What a run was begun with, so that whatever differs from it was asked for."""
    from mobilenetv2.training.run_folder import RunFolder

    return RunFolder.open(run).read_config().model_dump(mode="json")


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
        reason = error.strerror or error
        raise ConfigError(f"{flag} {folder}: cannot be written ({reason})") from error
    return folder
