"""The folder of a run, which explains itself and can be moved or mailed.

===================== ==================================================================
``config.yaml``       what was asked, every setting written out
``metrics.jsonl``     what happened: one JSON object per line, ``event`` is step, epoch or end
``result.json``       what came out
``model.safetensors`` the classifier of the epoch that is kept, by default the best
``last.pth.tar``      everything needed to go on
``previous.pth.tar``  the same, one save earlier: kept until the run is finished
``best.pth.tar``      the same, after the epoch that is kept so far
``*.png``             the pictures: first-batch, curves, confusion, mistakes
``mistakes.csv``      the files that were taken for something else
===================== ==================================================================
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ConfigError, Interrupted, ModelFileError, WorkFailed
from mobilenetv2.files import flush_to_disk, remove_leftovers, write_text
from mobilenetv2.settings import is_of_a_run, read_settings, to_yaml, validate
from mobilenetv2.training.replaced_run import REPLACED, ReplacedRun
from mobilenetv2.training.run_lock import LOCK_NAME, RunLock

Event = dict[str, Any]

RUN_FILES = (
    "config.yaml",
    "last.pth.tar",
    "previous.pth.tar",
    "best.pth.tar",
    "metrics.jsonl",
    "result.json",
    "model.safetensors",
    "first-batch.png",
    "curves.png",
    "confusion.png",
    "mistakes.png",
    "mistakes.csv",
)

TENSORBOARD_FILES = "events.out.tfevents.*"


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path, lock: RunLock | None = None, *, is_new: bool = False) -> None:
        self.path = path
        self._lock = lock
        self._is_new = is_new
        self.replaced = ReplacedRun(path)
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.model = path / "model.safetensors"
        self.last = path / "last.pth.tar"
        self.previous = path / "previous.pth.tar"
        self.best = path / "best.pth.tar"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """Take a folder for a new run, lock it, and write ``config.yaml`` into it.

        A run that lies there and may be overwritten is set aside until the new one has saved
        something: see :class:`ReplacedRun`.

        Raises:
            ConfigError: it holds something already, another program is at work in it, or it
                cannot be written.
        """
        path = config.out
        try:
            if path is None:
                path = _next_free(Path("runs"), Path(config.data.data).resolve().name)
            else:
                path.mkdir(parents=True, exist_ok=True)
                _refuse_other_files(path)
            folder = cls(path, RunLock(path), is_new=True)
            with folder._closed_if_it_fails():
                folder._refuse_a_run(config.overwrite)
                try:
                    folder._make_room()
                    # What is read from there later was not asked to overwrite anything.
                    settings = config.model_copy(update={"overwrite": False})
                    write_text(folder.config, to_yaml(settings))
                except BaseException:
                    folder.replaced.bring_back()
                    raise
        except OSError as error:
            where = error.filename or path
            raise ConfigError(
                f"--out {path or 'runs'}: cannot be written ({error.strerror}: {where}); name "
                "another folder"
            ) from error
        return folder

    @property
    def go_on(self) -> str:
        """What the user can do with a run that was stopped, in a sentence."""
        return f"Go on with: mobilenetv2 train --resume {self.path}"

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run that was begun before, to look at.

        Raises:
            ModelFileError: there is no run in it.
        """
        folder = cls(path)
        if not folder.config.is_file() or not folder.config.stat().st_size:
            raise ModelFileError(f"{path}: not a run folder (it has no config.yaml)")
        return folder

    @classmethod
    def open_to_go_on(cls, path: Path) -> "RunFolder":
        """The folder of a run that was begun before, locked, without what a killed process left.

        Raises:
            ModelFileError: there is no run in it.
            ConfigError: another program is at work in it, or it cannot be written.
        """
        cls.open(path)
        try:
            folder = cls(path, RunLock(path))
            for name in RUN_FILES:
                remove_leftovers(path / name)
        except OSError as error:
            raise ConfigError(
                f"--resume {path}: cannot be written ({error.strerror or error})"
            ) from error
        return folder

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A new run that failed before it began leaves nothing; an interrupted one can go on.
        failed = isinstance(error, Exception | SystemExit) and not isinstance(error, Interrupted)
        failed = failed and self._is_new and not self.has_begun
        if failed:
            self.config.unlink(missing_ok=True)
            self.replaced.bring_back()
        self.close()
        if failed:
            with suppress(OSError):  # it holds other files
                self.path.rmdir()

    def close(self) -> None:
        """Let other programs work in the folder."""
        if self._lock is not None:
            self._lock.release()

    @property
    def has_begun(self) -> bool:
        """Whether there is anything here that training has made."""
        made = (self.last, self.previous, self.best, self.model, self.result, self.metrics)
        return any(file.exists() for file in made)

    def read_config(self) -> TrainConfig:
        """The settings that the run was begun with.

        Raises:
            ConfigError: they cannot be read.
        """
        settings = read_settings(self.config)
        try:
            return validate(settings, str(self.config))
        except ConfigError as error:
            raise ConfigError(
                f"{error}. Was the run begun by another version of this program?"
            ) from error

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
                except (ValueError, RecursionError):
                    return
                if not isinstance(event, dict):
                    return
                yield event

    def rewind_events(self, step: int, epoch: int) -> None:
        """Drop what ``metrics.jsonl`` says of what will come again.

        Args:
            step: the last step that stays.
            epoch: the last epoch whose end stays.
        """
        last = {"step": step, "epoch": epoch}

        def stays(event: Event) -> bool:
            kind = str(event.get("event"))
            return bool(event.get(kind, math.inf) <= last.get(kind, -1))

        kept = list(filter(stays, self.read_events()))
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

    def _make_room(self) -> None:
        """Move what an earlier run has left here out of the way of this one."""
        if self.has_begun:
            self.replaced.forget()  # an older one, whose successor had saved something
        for name in RUN_FILES:
            remove_leftovers(self.path / name)
        # The settings last: what is left when the power fails in between is still a run.
        files = [self.path / name for name in reversed(RUN_FILES)]
        self.replaced.set_aside([*self.path.glob(TENSORBOARD_FILES), *files])

    def _refuse_a_run(self, overwrite: bool) -> None:
        if self.has_begun and not overwrite:
            raise ConfigError(
                f"--out {self.path}: already holds a run; name another folder, go on with it "
                f"(--resume {self.path}), or add --overwrite to start it anew"
            )

    @contextmanager
    def _closed_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _metrics_for_appending(self) -> Iterator[IO[str]]:
        try:
            with self.metrics.open("a", encoding="utf-8", errors="backslashreplace") as file:
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


def _refuse_other_files(path: Path) -> None:
    """Make sure that a folder is empty, or holds a run, perhaps one that never began."""
    folder = RunFolder(path)
    known = [".DS_Store", LOCK_NAME, REPLACED]
    if is_of_a_run(folder.config):
        if folder.has_begun:
            return
        known += ["config.yaml", *(f".{name}.*.part" for name in RUN_FILES), TENSORBOARD_FILES]
    names = sorted(file.name for file in path.iterdir())
    others = [name for name in names if not any(fnmatchcase(name, one) for one in known)]
    if others:
        raise ConfigError(
            f"--out {path}: holds other files (such as {others[0]}); name an empty folder"
        )
