"""Settings on their way from files to a checked :class:`TrainConfig`, and back to YAML.

Precedence is default < recipe of the data set < ``--config`` file < flag.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mobilenetv2.config import Section, TrainConfig, flag_names
from mobilenetv2.errors import ConfigError

ALWAYS_WRITTEN = ("data", "network", "optimizer", "schedule", "epochs", "batch_size", "seed", "out")
"""At the top of what :func:`to_yaml` has written in every version."""


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
        settings = _with_names(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        # PyYAML lets through what converting a value raises, such as the 13th month of a date.
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{origin}: expected lines such as `lr: 0.1`, found {text[:40]!r}")
    return nest({key: _with_names(value) for key, value in settings.items()})


def _with_names(settings: Any) -> Any:
    """A mapping whose keys are names of settings, whatever YAML takes them for."""
    if not isinstance(settings, dict):
        return settings
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


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


def is_of_a_run(path: Path) -> bool:
    """Whether a YAML file is what runs of any version write, or empty, and nobody's own."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return not text or all(re.search(rf"^{name}:", text, re.MULTILINE) for name in ALWAYS_WRITTEN)


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with each key below its section; sections and top keys stay where they are.

    >>> nest({"lr": 0.2, "epochs": 3})
    {'optimizer': {'lr': 0.2}, 'epochs': 3}
    """
    sections = flag_names(TrainConfig)
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section = sections.get(key)
        is_section = isinstance(value, dict | Section)
        if section is None or is_section:
            nested = merge(nested, {key: value})
        else:
            nested = merge(nested, {section: {key: value}})
    return nested
