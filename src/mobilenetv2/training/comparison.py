"""Runs beside each other: which settings differ from those of the first, and what came out."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ModelFileError
from mobilenetv2.training.run_folder import RunFolder

NOT_COMPARED = {
    "data_dir", "memory_limit", "cache_dir", "cache_limit", "out", "overwrite", "resume", "quiet",
    "tensorboard", "checkpoint_every",
}  # fmt: skip
"""Settings that say where things lie and what is shown: no figure depends on them."""


class _Figures(BaseModel):
    """Figures from a file that anybody may have written."""

    model_config = ConfigDict(allow_inf_nan=False, frozen=True)


class ComparedEpoch(_Figures):
    """What ``metrics.jsonl`` tells of an epoch."""

    epoch: int
    val_loss: float
    val_accuracy: float
    seconds: float | None = None


class _Class(_Figures):
    pictures: int


class _Result(_Figures):
    """What is read of a ``result.json``; those of older versions lack what came later."""

    val_accuracy: float
    test_accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    macro_f1: float | None = None
    seconds: float
    lr: float | None = None
    classes: tuple[_Class, ...] = ()
    device: str | None = None
    precision: str | None = None
    fast_ops: str | None = None
    version: str | None = None


class Spread(_Figures):
    """Mean and standard deviation (of the sample) of accuracies."""

    mean: float
    standard_deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of two values or more."""
        return cls(mean=statistics.fmean(values), standard_deviation=statistics.stdev(values))


@dataclass(frozen=True)
class ComparedRun:
    """What one run adds to a comparison.

    Attributes:
        path: its folder.
        settings: by their names as flags have them, those that figures can depend on.
        epochs: those that are over.
        val_accuracy: a fraction, of the epoch that is kept; None before the first has ended.
        seconds: of the run so far; None before the first epoch has ended.
        has_ended: whether it trained to its end; what follows is known then alone.
        test_accuracy: a fraction; None without a test set.
        interval: that holds the true accuracy with 95 % confidence, of the test set, or of the
            validation set where there is no other.
        macro_f1: mean of the classes' F1 there.
        measured: pictures of each class that it was measured on.
        lr: the peak learning rate, also where it was searched.
        machine: what ran it: device, precision, operations, version of this program.
    """

    path: Path
    settings: dict[str, Any]
    epochs: tuple[ComparedEpoch, ...]
    val_accuracy: float | None
    seconds: float | None
    has_ended: bool = False
    test_accuracy: float | None = None
    interval: tuple[float, float] | None = None
    macro_f1: float | None = None
    measured: tuple[int, ...] = ()
    lr: float | None = None
    machine: tuple[str | None, ...] = ()

    @property
    def reported_on(self) -> str | None:
        """The set that interval and macro-F1 are of; None before the end."""
        if not self.has_ended:
            return None
        return "validation" if self.test_accuracy is None else "test"

    def other_than(self, base: "ComparedRun") -> dict[str, Any]:
        """Its settings that are not as in ``base``; a rate that was searched is the one found."""
        mine, others = (
            run.settings | ({"lr": run.lr} if run.settings["lr"] == "auto" and run.lr else {})
            for run in (self, base)
        )
        return {name: value for name, value in mine.items() if others[name] != value}

    def on_other_pictures_than(
        self, base: "ComparedRun"
    ) -> Literal["", "validation", "validation and test"]:
        """Which figures are of other pictures than those of ``base``, as far as folders tell."""
        counted = self.measured and base.measured
        if self.settings["data"] != base.settings["data"] or (
            counted and self.measured != base.measured
        ):
            return "validation and test"
        split = ("val_fraction", "split_seed")
        other = any(self.settings[name] != base.settings[name] for name in split)
        return "validation" if other else ""

    def to_json(self, base: "ComparedRun") -> dict[str, Any]:
        """Its row as JSON-ready values."""
        return {
            "run": str(self.path),
            "ended": self.has_ended,
            "epochs": len(self.epochs),
            "val_accuracy": self.val_accuracy,
            "test_accuracy": self.test_accuracy,
            "accuracy_interval": self.interval,
            "macro_f1": self.macro_f1,
            "interval_and_macro_f1_of": self.reported_on,
            "seconds": self.seconds,
            "other_settings": self.other_than(base),
        }


@dataclass(frozen=True)
class Repeated:
    """Runs that differ in their seeds alone.

    Attributes:
        runs: two or more, all of which have ended, each with another seed.
        again: runs with a seed that one of those has: no other samples, and not in the figures.
        val: of their validation accuracies.
        test: of their test accuracies; None where some have none.
    """

    runs: tuple[ComparedRun, ...]
    val: Spread
    test: Spread | None
    again: tuple[ComparedRun, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Its figures as JSON-ready values."""
        return {
            "runs": [str(run.path) for run in self.runs],
            "seeds": [run.settings["seed"] for run in self.runs],
            "same_seed_again": [str(run.path) for run in self.again],
            "val_accuracy": self.val.model_dump(),
            "test_accuracy": self.test and self.test.model_dump(),
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
    epochs = tuple(_epochs(folder))
    if not folder.result.exists():
        kept = epochs[-1:] if config.keep == "last" else epochs
        best = max((epoch.val_accuracy for epoch in kept), default=None)
        return ComparedRun(path, settings, epochs, best, epochs[-1].seconds if epochs else None)
    result = _read_result(folder.result)
    return ComparedRun(
        path,
        settings,
        epochs,
        result.val_accuracy,
        result.seconds,
        has_ended=True,
        test_accuracy=result.test_accuracy,
        interval=result.accuracy_interval,
        macro_f1=result.macro_f1,
        measured=tuple(row.pictures for row in result.classes),
        lr=result.lr,
        machine=(result.device, result.precision, result.fast_ops, result.version),
    )


def repeated(runs: Sequence[ComparedRun]) -> list[Repeated]:
    """The groups among runs that differ in their seeds alone, in the order of their first ones.

    Their settings, their pictures and what ran them are the same.
    """
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if run.has_ended:
            others = {name: value for name, value in run.settings.items() if name != "seed"}
            key = json.dumps([others, run.measured, run.machine], sort_keys=True)
            groups.setdefault(key, []).append(run)
    found = [_together(group) for group in groups.values()]
    return [group for group in found if group is not None]


def _together(alike: Sequence[ComparedRun]) -> Repeated | None:
    """Runs of one group, or None if there is one seed alone."""
    of_seed: dict[int, ComparedRun] = {}
    for run in alike:
        of_seed.setdefault(run.settings["seed"], run)
    if len(of_seed) < 2:
        return None
    runs = tuple(of_seed.values())
    again = tuple(run for run in alike if run not in runs)
    val = [run.val_accuracy for run in runs if run.val_accuracy is not None]
    test = [run.test_accuracy for run in runs if run.test_accuracy is not None]
    tested = Spread.of(test) if len(test) == len(runs) else None
    return Repeated(runs, Spread.of(val), tested, again)


def _flat(config: TrainConfig) -> dict[str, Any]:
    """Settings by their names alone, as flags have them, without their sections."""
    flat: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        flat |= value if isinstance(value, dict) else {name: value}
    flat["data"] = str(Path(flat["data"]))  # photos and photos/ are the same
    return {name: value for name, value in flat.items() if name not in NOT_COMPARED}


def _epochs(folder: RunFolder) -> Iterator[ComparedEpoch]:
    """The epochs that ended; what is no figure ends them."""
    for event in folder.read_events():
        if event.get("event") == "epoch":
            try:
                yield ComparedEpoch.model_validate(event)
            except ValidationError:
                return


def _read_result(path: Path) -> _Result:
    try:
        return _Result.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = getattr(error, "strerror", None) or "it is not what a run writes at its end"
        raise ModelFileError(f"{path}: cannot be read ({reason})") from error
