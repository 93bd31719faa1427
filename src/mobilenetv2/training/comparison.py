"""Runs beside each other: what was asked of each that was not asked of the first, what came out."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ModelFileError
from mobilenetv2.training.run_folder import Event, RunFolder

NOT_COMPARED = {
    "data_dir", "memory_limit", "cache_dir", "cache_limit", "out", "overwrite", "resume", "quiet",
    "tensorboard", "checkpoint_every",
}  # fmt: skip
"""Settings that say where things lie and what is shown: no figure depends on them."""

DECIDE_THE_PICTURES = ("data", "image_size", "resize", "colour", "val_fraction", "split_seed")
"""Settings that say which pictures a run is measured on, and what it sees of them."""


class _Class(BaseModel):
    pictures: int


class _Result(BaseModel):
    """What is read of a ``result.json``; older ones may lack what came later."""

    model_config = ConfigDict(allow_inf_nan=False)

    val_accuracy: float
    test_accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    seconds: float
    lr: float | None = None
    best_epoch: int
    classes: tuple[_Class, ...] = ()


@dataclass(frozen=True)
class ComparedRun:
    """What one run adds to a comparison.

    Attributes:
        path: its folder.
        settings: by their names as flags have them, those that figures can depend on.
        epochs: the events of its epochs, as ``metrics.jsonl`` has them.
        has_ended: whether it trained to its end; the figures are otherwise of the epochs so far.
        val_accuracy: a fraction, of the epoch that is kept; None before the first has ended.
        test_accuracy: a fraction; None without a test set, and before the end.
        interval: that holds the true accuracy with 95 % confidence, of the test set, or of the
            validation set where there is no other; None before the end.
        seconds: of the run so far; None before the first epoch has ended.
        measured: pictures of each class that it was measured on; empty before the end.
    """

    path: Path
    settings: dict[str, Any]
    epochs: tuple[Event, ...]
    has_ended: bool
    val_accuracy: float | None
    test_accuracy: float | None = None
    interval: tuple[float, float] | None = None
    seconds: float | None = None
    measured: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """On the test set, or on the validation set where there is no other."""
        return self.val_accuracy if self.test_accuracy is None else self.test_accuracy

    def other_than(self, base: "ComparedRun") -> dict[str, Any]:
        """Its settings that are not as in ``base``."""
        return {
            name: value
            for name, value in self.settings.items()
            if name not in base.settings or base.settings[name] != value
        }

    def same_pictures_as(self, other: "ComparedRun") -> bool:
        """Whether the figures of both are of the same pictures, as far as their folders tell."""
        if any(self.settings[name] != other.settings[name] for name in DECIDE_THE_PICTURES):
            return False
        return self.measured == other.measured or not (self.measured and other.measured)

    def to_json(self, base: "ComparedRun") -> dict[str, Any]:
        """Its row as JSON-ready values."""
        return {
            "run": str(self.path),
            "ended": self.has_ended,
            "epochs": len(self.epochs),
            "val_accuracy": self.val_accuracy,
            "test_accuracy": self.test_accuracy,
            "accuracy_interval": self.interval and list(self.interval),
            "seconds": self.seconds,
            "other_settings": self.other_than(base),
        }


@dataclass(frozen=True)
class Repeated:
    """Runs that differ in their seeds alone.

    Attributes:
        runs: two or more, all of which have ended.
        val: mean and standard deviation (of the sample) of their validation accuracies.
        test: the same of their test accuracies; None where some have none.
    """

    runs: tuple[ComparedRun, ...]
    val: tuple[float, float]
    test: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Its figures as JSON-ready values."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "seeds": [run.settings["seed"] for run in self.runs],
            "val_accuracy": _mean_and_deviation_json(self.val),
            "test_accuracy": self.test and _mean_and_deviation_json(self.test),
        }


def read_run(path: Path) -> ComparedRun:
    """What the folder of a run tells, whether it has ended or not.

    Raises:
        ModelFileError: it is no run folder, or its ``result.json`` is damaged.
        ConfigError: its settings cannot be read.
    """
    folder = RunFolder.open(path)
    config = folder.read_config()
    settings = _flat(config)
    epochs = tuple(event for event in folder.read_events() if _is_an_epoch(event))
    if not folder.result.exists():
        kept = epochs[-1:] if config.keep == "last" else epochs
        best = max((event["val_accuracy"] for event in kept), default=None)
        seconds = epochs[-1].get("seconds") if epochs else None
        return ComparedRun(path, settings, epochs, False, best, seconds=seconds)
    result = _read_result(folder.result)
    if settings["lr"] == "auto" and result.lr:
        settings["lr"] = result.lr
    return ComparedRun(
        path,
        settings,
        epochs,
        True,
        result.val_accuracy,
        result.test_accuracy,
        result.accuracy_interval,
        result.seconds,
        tuple(row.pictures for row in result.classes),
    )


def repeated(runs: Sequence[ComparedRun]) -> list[Repeated]:
    """The groups among runs that differ in their seeds alone, in the order of their first ones."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if run.has_ended:
            others = {name: value for name, value in run.settings.items() if name != "seed"}
            key = json.dumps([others, run.measured], sort_keys=True)
            group = groups.setdefault(key, [])
            # The same seed again is no other sample: its figures are the same.
            if all(run.settings["seed"] != one.settings["seed"] for one in group):
                group.append(run)
    return [_together(group) for group in groups.values() if len(group) > 1]


def _together(runs: Sequence[ComparedRun]) -> Repeated:
    val = [run.val_accuracy for run in runs if run.val_accuracy is not None]
    test = [run.test_accuracy for run in runs if run.test_accuracy is not None]
    tested = _mean_and_deviation(test) if len(test) == len(runs) else None
    return Repeated(tuple(runs), _mean_and_deviation(val), tested)


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values)


def _mean_and_deviation_json(figures: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("mean", "standard_deviation"), figures, strict=True))


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Settings by their names alone, as flags have them, without their sections."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        flat |= value if isinstance(value, dict) else {name: value}
    flat["data"] = str(Path(flat["data"]))  # photos and photos/ are the same
    return {name: value for name, value in flat.items() if name not in NOT_COMPARED}


def _is_an_epoch(event: Event) -> bool:
    figures = ("epoch", "val_loss", "val_accuracy")
    return event.get("event") == "epoch" and all(
        isinstance(event.get(name), int | float) for name in figures
    )


def _read_result(path: Path) -> _Result:
    try:
        return _Result.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = getattr(error, "strerror", None) or "it is not what a run writes at its end"
        raise ModelFileError(f"{path}: cannot be read ({reason})") from error
