"""The folder of a run, which explains itself and can be moved or mailed.

===================== ==================================================================
``config.yaml``       what was asked, every setting written out
``metrics.jsonl``     what happened: one JSON object per line, ``event`` is step, epoch or end
``result.json``       what came out
``model.safetensors`` the classifier of the best epoch
``last.pth.tar``      everything needed to go on
``previous.pth.tar``  the same, one save earlier: kept until the run is finished
``best.pth.tar``      the same, after the epoch with the best validation
``*.png``             the pictures: curves, confusion, mistakes
===================== ==================================================================
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ConfigError, ModelFileError, WorkFailed
from mobilenetv2.files import flush_to_disk, remove_leftovers, write_text
from mobilenetv2.settings import read_settings, to_yaml, validate

Event = dict[str, Any]

RUN_FILES = (
    "config.yaml",
    "metrics.jsonl",
    "result.json",
    "model.safetensors",
    "last.pth.tar",
    "previous.pth.tar",
    "best.pth.tar",
    "curves.png",
    "confusion.png",
    "mistakes.png",
)


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.model = path / "model.safetensors"
        self.last = path / "last.pth.tar"
        self.previous = path / "previous.pth.tar"
        self.best = path / "best.pth.tar"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """Take a folder for a new run, and write ``config.yaml`` into it.

        Raises:
            ConfigError: it holds something already, or cannot be written.
        """
        path = config.out
        try:
            if path is None:
                path = _next_free(Path("runs"), Path(config.data.data).resolve().name)
            else:
                path.mkdir(parents=True, exist_ok=True)
                _make_room(path, config.overwrite)
            folder = cls(path)
            folder.config.touch()
        except OSError as error:
            where = error.filename or path
            raise ConfigError(
                f"--out {path or 'runs'}: cannot be written ({error.strerror}: {where}); name "
                "another folder"
            ) from error
        # What is read from there later was not asked to overwrite anything.
        write_text(folder.config, to_yaml(config.model_copy(update={"overwrite": False})))
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run that was begun before.

        Raises:
            ModelFileError: there is no run in it.
        """
        folder = cls(path)
        if not folder.config.is_file():
            raise ModelFileError(f"{path}: not a run folder (it has no config.yaml)")
        return folder

    def read_config(self) -> TrainConfig:
        """The settings that the run was begun with."""
        return validate(read_settings(self.config), str(self.config))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``."""
        write_text(self.result, json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    def read_events(self) -> Iterator[Event]:
        """What ``metrics.jsonl`` holds; a line torn by a crash ends it."""
        if not self.metrics.is_file():
            return
        with self.metrics.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    return
                yield event

    def rewind_events(self, step: int) -> None:
        """Drop what ``metrics.jsonl`` says of the time after ``step``, which will come again."""
        kept = [
            event
            for event in self.read_events()
            if event.get("step", math.inf) <= step and event.get("event") != "end"
        ]
        write_text(self.metrics, to_lines(kept))

    def append_events(self, events: Iterable[Event]) -> None:
        """Add lines to ``metrics.jsonl``.

        Raises:
            WorkFailed: the disk is full, the folder cannot be written, …
        """
        with self._metrics_for_appending() as file:
            file.write(to_lines(events))

    def flush_events(self) -> None:
        """Make sure that a power cut takes no events back: a checkpoint relies on them."""
        if self.metrics.exists():
            with self._metrics_for_appending() as file:
                flush_to_disk(file)

    def remove_leftovers(self) -> None:
        """Delete what a killed process left half-written."""
        for name in RUN_FILES:
            remove_leftovers(self.path / name)

    @contextmanager
    def _metrics_for_appending(self) -> Iterator[IO[str]]:
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                yield file
        except OSError as error:
            raise WorkFailed(
                f"{self.metrics}: cannot be written ({error.strerror or error})"
            ) from error


def to_lines(events: Iterable[Event]) -> str:
    """One JSON object per line."""
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)


def _next_free(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()  # fails where it exists: two runs can never take the same one
        except FileExistsError:
            number += 1
        else:
            return path


def _make_room(path: Path, overwrite: bool) -> None:
    present = [file for file in path.iterdir() if file.name != ".DS_Store"]
    if not present:
        return
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"--out {path}: holds other files (such as {present[0].name}); name an empty folder"
        )
    if not overwrite:
        raise ConfigError(
            f"--out {path}: already holds a run; name another folder, go on with it "
            f"(--resume {path}), or add --overwrite to start it anew"
        )
    for name in RUN_FILES:
        (path / name).unlink(missing_ok=True)
        remove_leftovers(path / name)
