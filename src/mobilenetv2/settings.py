"""Settings on their way from files to a checked :class:`TrainConfig`, and back to YAML.

Precedence is default < recipe of the data set < ``--config`` file < flag.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mobilenetv2.config import TrainConfig, flag_names
from mobilenetv2.errors import ConfigError


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
    layers = (recipe_settings(data), _nest({"data": data, **settings}))
    return validate(merge(*layers), "settings")


def recipe_settings(data: str) -> dict[str, Any]:
    """The settings that were measured to suit a data set, by its name; folders share one."""
    folder = resources.files("mobilenetv2") / "recipes"
    named = folder / f"{data}.yaml"
    recipe = named if named.is_file() else folder / "folder.yaml"
    return parse_settings(recipe.read_text(encoding="utf-8"), recipe.name)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ConfigError: the file cannot be read, or is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--config {path}: cannot be read ({reason})") from error
    return parse_settings(text, str(path))


def parse_settings(text: str, origin: str) -> dict[str, Any]:
    """YAML text to nested settings; ``lr: 0.2`` may stand alone or below ``optimizer:``.

    >>> parse_settings("lr: 1e-3", "x.yaml")
    {'optimizer': {'lr': '1e-3'}}
    """
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{origin}: expected lines such as `lr: 0.1`, found {text[:40]!r}")
    return _nest({str(key).replace("-", "_"): value for key, value in settings.items()})


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings laid over each other; the last one wins, key by key.

    >>> merge({"optimizer": {"lr": 1, "momentum": 0}}, {"optimizer": {"lr": 2}})
    {'optimizer': {'lr': 2, 'momentum': 0}}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                value = merge(below, value)
            merged[key] = value
    return merged


def validate(settings: Mapping[str, Any], origin: str) -> TrainConfig:
    """Checked settings.

    Raises:
        ConfigError: names each key that is unknown or out of range.
    """
    try:
        return TrainConfig(**settings)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def to_yaml(config: TrainConfig) -> str:
    """The settings as YAML text, grouped by section, readable again by :func:`read_settings`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _nest(settings: dict[str, Any]) -> dict[str, Any]:
    sections = flag_names(TrainConfig)
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section = sections.get(key)
        is_section = isinstance(value, dict)
        if section is None or is_section:
            nested = merge(nested, {key: value})
        else:
            nested = merge(nested, {section: {key: value}})
    return nested
