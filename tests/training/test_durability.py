"""Whatever fails while a checkpoint is saved, one that can be used is there afterwards."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import mobilenetv2
from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ModelFileError, WorkFailed
from mobilenetv2.training.checkpoints import Checkpoint, save_archive
from mobilenetv2.training.run_folder import RunFolder

Quick = Callable[..., TrainConfig]


class Faults:
    """Counts every call with which a file is written, and lets one of them fail."""

    CALLS = ("open", "fsync", "replace", "chmod", "fdopen", "posix_fadvise")

    def __init__(self, fail_at: int, fail: Callable[[], Any]) -> None:
        self.count = 0
        self.log: list[str] = []
        self._fail_at = fail_at
        self._fail = fail

    def check(self, name: str) -> None:
        self.count += 1
        self.log.append(name)
        if self.count == self._fail_at:
            self._fail()

    @contextmanager
    def active(self) -> Iterator["Faults"]:
        originals = {name: getattr(os, name) for name in self.CALLS}

        def wrapper(name: str) -> Callable[..., Any]:
            def called(*arguments: Any, **options: Any) -> Any:
                self.check(name)
                result = originals[name](*arguments, **options)
                return FaultyFile(result, self) if name == "fdopen" else result

            return called

        for name in self.CALLS:
            setattr(os, name, wrapper(name))
        try:
            yield self
        finally:
            for name, original in originals.items():
                setattr(os, name, original)


class FaultyFile:
    """A file whose writes, reads and flushes can fail."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file = file
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._file, name)
        if name not in ("write", "read", "flush"):
            return value

        def called(*arguments: Any) -> Any:
            self._faults.check(name)
            return value(*arguments)

        return called

    def __enter__(self) -> "FaultyFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def os_error(number: int) -> Callable[[], Any]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_of(folder: Path) -> RunFolder:
    return RunFolder(folder)


def newest(run: RunFolder) -> Checkpoint:
    return Checkpoint.load_first_good(run.last, run.previous)[0]


def calls_of_a_save(run: RunFolder, checkpoint: Checkpoint) -> list[str]:
    with Faults(0, lambda: None).active() as faults:
        save_archive(checkpoint.to_archive(), run.last, run.previous)
    return faults.log


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EIO, errno.EROFS],
)
def test_every_call_of_a_save_may_fail(unfinished: Path, number: int) -> None:
    run = run_of(unfinished)
    checkpoint = Checkpoint.load(run.last)
    calls = calls_of_a_save(run, checkpoint)
    assert {"write", "read", "fsync", "replace", "chmod", "open"} <= set(calls)
    assert calls.count("replace") == 2
    last_rename = len(calls) - calls[::-1].index("replace")
    for place in range(1, len(calls) + 1):
        epoch = newest(run).epoch
        checkpoint.epoch += 1
        words = f"{re.escape(str(run.last))}: .*{os.strerror(number)}"
        fails = place <= last_rename  # after it, the folder is flushed: nothing to undo any more
        refused = pytest.raises(WorkFailed, match=words) if fails else nullcontext()
        with Faults(place, os_error(number)).active(), refused:
            save_archive(checkpoint.to_archive(), run.last, run.previous)
        epoch = epoch if fails else checkpoint.epoch
        assert newest(run).epoch == epoch, calls[:place]
        assert not list(unfinished.glob(".last*"))


KILLED_AT_EVERY_CALL = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_durability import Faults, calls_of_a_save, die, newest, run_of
from mobilenetv2.training.checkpoints import Checkpoint, save_archive
from mobilenetv2.training.run_folder import RunFolder
run = run_of(Path(sys.argv[2]))
checkpoint = Checkpoint.load(run.last)
for place in range(1, len(calls_of_a_save(run, checkpoint)) + 1):
    before = newest(run).epoch
    checkpoint.epoch += 1
    child = os.fork()
    if not child:
        with Faults(place, die).active():
            save_archive(checkpoint.to_archive(), run.last, run.previous)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 9, place
    after = newest(run).epoch
    assert after in (before, checkpoint.epoch), (place, before, after)
    assert run.previous.exists(), place
    RunFolder.open_to_go_on(run.path).close()
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")], place
    print(place)
"""


@pytest.mark.slow
def test_killed_at_every_call_of_a_save(unfinished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_AT_EVERY_CALL,
         str(Path(__file__).parent), str(unfinished)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 10


@pytest.mark.parametrize(
    "damages", [("flip", "gone"), pytest.param(("cut", "empty"), marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    damages: Sequence[str], quick: Quick, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = quick("whole", ema=0.5)
    result = mobilenetv2.train(whole)
    for damage in damages:
        run = unfinished.parent / damage
        run.mkdir()
        for file in unfinished.iterdir():
            (run / file.name).write_bytes(file.read_bytes())
        last = run / "last.pth.tar"
        contents = bytearray(last.read_bytes())
        contents[len(contents) // 2] ^= 4
        match damage:
            case "flip":
                last.write_bytes(contents)
            case "cut":
                last.write_bytes(contents[:-1])
            case "empty":
                last.write_bytes(b"")
            case "gone":
                last.unlink()
        capsys.readouterr()
        again = mobilenetv2.resume(run, Console())
        said = capsys.readouterr().out
        assert f"{last}: " in said
        assert f"going on from {run / 'previous.pth.tar'} instead" in said
        assert again["val_loss"] == result["val_loss"]
        one, two = (mobilenetv2.load(folder).network for folder in (whole.out, run))  # type: ignore[arg-type]
        for key, weight in one.state_dict().items():
            assert torch.equal(weight, two.state_dict()[key])
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == len((whole.out / "metrics.jsonl").read_text().splitlines())  # type: ignore[operator]


def test_all_damaged_is_an_error_that_names_the_last(unfinished: Path) -> None:
    for name in ("last", "previous", "best"):
        (unfinished / f"{name}.pth.tar").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"last\.pth\.tar: not a whole checkpoint"):
        mobilenetv2.resume(unfinished)


def test_permissions_stay_and_a_finished_run_keeps_no_spare(unfinished: Path) -> None:
    (unfinished / "last.pth.tar").chmod(0o640)
    leftover = unfinished / ".last.pth.tar.abcd1234.part"
    leftover.write_bytes(b"half")
    mine = unfinished / ".last.pth.tar.my-notes"
    mine.write_bytes(b"mine")
    mobilenetv2.resume(unfinished)
    assert (unfinished / "last.pth.tar").stat().st_mode & 0o777 == 0o640
    assert not (unfinished / "previous.pth.tar").exists()
    assert not leftover.exists()
    assert mine.exists()


def test_events_reach_the_disk_before_the_checkpoint_that_relies_on_them(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush, archive = RunFolder.flush_events, Checkpoint.to_archive

    def flush_events(self: RunFolder) -> None:
        order.append("flush")
        flush(self)

    def to_archive_(self: Checkpoint) -> bytearray:
        order.append("archive")
        return archive(self)

    def save(archive: bytearray, path: Path, previous: Path | None = None) -> None:
        order.append(path.name.partition(".")[0])
        save_archive(archive, path, previous)

    monkeypatch.setattr(RunFolder, "flush_events", flush_events)
    monkeypatch.setattr(Checkpoint, "to_archive", to_archive_)
    monkeypatch.setattr("mobilenetv2.training.loop.save_archive", save)
    mobilenetv2.train(quick())
    assert " ".join(order[:3]) == "flush archive last"  # the start
    # The first epoch is the best one until then: one archive for both files.
    assert " ".join(order[3:7]) == "flush archive best last"
    assert order[7:] in (["flush", "archive", "last"], ["flush", "archive", "best", "last"])


@pytest.mark.slow
def test_a_full_disk_stops_in_words_and_loses_nothing(unfinished: Path) -> None:
    """The kernel's own refusal: no file may grow past half of a checkpoint."""
    before = (unfinished / "last.pth.tar").read_bytes()
    limit = len(before) // 2
    done = subprocess.run(
        [sys.executable, "-m", "mobilenetv2", "train", "--resume", str(unfinished)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert ".pth.tar: cannot be written (File too large)" in done.stderr
    assert (unfinished / "last.pth.tar").read_bytes() == before
    assert mobilenetv2.resume(unfinished)["steps"] == 6
