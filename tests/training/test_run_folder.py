"""The run folder: never overwritten unasked; its events without gaps and doubles."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ConfigError, Interrupted, ModelFileError, WorkFailed
from mobilenetv2.settings import to_yaml
from mobilenetv2.training import run_folder
from mobilenetv2.training.run_folder import RUN_FILES, RunFolder, to_lines
from mobilenetv2.training.run_lock import RunLock

STEPS = [{"event": "step", "step": step, "loss": 1.0} for step in range(1, 6)]


def test_many_at_once_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(RunFolder.create, [TrainConfig()] * 24))
    for folder in folders:
        folder.close()
    names = {folder.path.name for folder in folders}
    assert names == {"digits", *(f"digits-{number}" for number in range(2, 25))}


def test_a_run_named_by_a_path_is_called_by_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = TrainConfig().data.model_copy(update={"data": "a/b/../flowers/"})
    with RunFolder.create(TrainConfig(data=data)) as folder:
        pass
    assert folder.path == Path("runs/flowers")


def test_leave_to_overwrite_is_not_written_down(tmp_path: Path) -> None:
    """Or `--config RUN/config.yaml` would destroy that run without being asked to."""
    asked = TrainConfig(out=tmp_path / "run", overwrite=True)
    with RunFolder.create(asked) as folder:
        folder.append_events(STEPS)
    again = folder.read_config()
    assert again == asked.model_copy(update={"overwrite": False})
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(again)


def test_overwriting_takes_the_files_of_a_run_and_no_others(tmp_path: Path) -> None:
    RunFolder.create(TrainConfig(out=tmp_path)).close()
    events = "events.out.tfevents.1.host.2.0"
    for name in (*RUN_FILES[1:], ".last.pth.tar.abc.part", events, "notes.txt"):
        (tmp_path / name).write_text("old")
    with RunFolder.create(TrainConfig(out=tmp_path, overwrite=True, epochs=3)) as folder:
        assert not folder.has_begun
        assert folder.read_config().epochs == 3
        # The old one is there until there is something to put in its place.
        assert (tmp_path / ".replaced" / "last.pth.tar").read_text() == "old"
        folder.replaced.forget()
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "notes.txt"}


def test_an_attempt_that_was_killed_keeps_what_it_had_set_aside(tmp_path: Path) -> None:
    RunFolder.create(TrainConfig(out=tmp_path)).close()
    (tmp_path / "last.pth.tar").write_text("old")
    for epochs in (3, 4):  # never comes to its end
        RunFolder.create(TrainConfig(out=tmp_path, overwrite=True, epochs=epochs)).close()
    with pytest.raises(WorkFailed), RunFolder.create(TrainConfig(out=tmp_path, overwrite=True)):
        raise WorkFailed
    assert (tmp_path / "last.pth.tar").read_text() == "old"
    assert RunFolder.open(tmp_path).read_config().epochs == 30


@pytest.mark.parametrize("failure", [WorkFailed, RuntimeError, MemoryError, SystemExit])
def test_a_run_that_fails_before_it_begins_overwrites_nothing(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    RunFolder.create(TrainConfig(out=tmp_path)).close()
    (tmp_path / "last.pth.tar").write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(failure), RunFolder.create(TrainConfig(out=tmp_path, overwrite=True)):
        raise failure
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_event_that_is_none_ends_what_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "step": 1}\nnull\n{"event": "x"}\n')
    folder = RunFolder(tmp_path)
    folder.rewind_events(step=5, epoch=1)
    assert [event["step"] for event in folder.read_events()] == [1]


@pytest.mark.parametrize("fails", ["write_text", "replace"])
def test_a_folder_that_cannot_be_taken_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The disk is full when the new settings are written, or fails while files are set aside."""
    RunFolder.create(TrainConfig(out=tmp_path)).close()
    for name in ("last.pth.tar", "metrics.jsonl", "events.out.tfevents.1"):
        (tmp_path / name).write_text("old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace, replaced = Path.replace, []

    def replace_two(path: Path, target: Path) -> Path:
        if len(replaced) == 2:
            replaced.append(path)
            raise OSError(5, "Input/output error", str(path))
        replaced.append(path)
        return replace(path, target)

    with monkeypatch.context() as failing:
        if fails == "replace":
            failing.setattr(Path, "replace", replace_two)
        else:
            failing.setattr(run_folder, "write_text", lambda *_: (_ for _ in ()).throw(WorkFailed))
        with pytest.raises((WorkFailed, ConfigError)):
            RunFolder.create(TrainConfig(out=tmp_path, overwrite=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(TrainConfig(out=tmp_path))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "others",
    [
        {"config.yaml": "lr: 0.2  # mine"},
        {"config.yaml": "data: digits\nepochs: 3  # mine"},
        {"config.yaml": None, "main.py": "mine"},
    ],
)
def test_what_no_run_has_written_is_not_touched(
    tmp_path: Path, others: dict[str, str | None], overwrite: bool
) -> None:
    for name, text in others.items():
        (tmp_path / name).write_text(to_yaml(TrainConfig()) if text is None else text)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=f"holds other files .such as {list(others)[-1]}"):
        RunFolder.create(TrainConfig(out=tmp_path, overwrite=overwrite))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_comes_back_is_the_newest_run_that_had_begun(tmp_path: Path) -> None:
    for text in ("older", "newer"):
        RunFolder.create(TrainConfig(out=tmp_path, overwrite=True)).close()
        (tmp_path / "last.pth.tar").write_text(text)  # and the power fails
    assert (tmp_path / ".replaced" / "last.pth.tar").read_text() == "older"
    with pytest.raises(WorkFailed), RunFolder.create(TrainConfig(out=tmp_path, overwrite=True)):
        raise WorkFailed
    assert (tmp_path / "last.pth.tar").read_text() == "newer"
    assert not (tmp_path / ".replaced").exists()


def test_a_run_of_another_version_may_be_overwritten(tmp_path: Path) -> None:
    RunFolder.create(TrainConfig(out=tmp_path)).close()
    config = tmp_path / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("balance:")))
    (tmp_path / "last.pth.tar").write_text("old")
    with RunFolder.create(TrainConfig(out=tmp_path, overwrite=True)) as folder:
        assert folder.read_config().balance == "none"


def test_settings_of_a_run_that_never_began_come_back_with_a_failure(tmp_path: Path) -> None:
    RunFolder.create(TrainConfig(out=tmp_path, epochs=3)).close()
    with pytest.raises(WorkFailed), RunFolder.create(TrainConfig(out=tmp_path)):
        raise WorkFailed
    assert RunFolder.open(tmp_path).read_config().epochs == 3


@pytest.mark.parametrize("damage", ["never begun", "no settings"])
def test_a_run_that_never_began_may_be_begun_anew(tmp_path: Path, damage: str) -> None:
    RunFolder.create(TrainConfig(out=tmp_path)).close()
    if damage == "no settings":
        (tmp_path / "config.yaml").write_text("")
        with pytest.raises(ModelFileError, match="not a run folder"):
            RunFolder.open(tmp_path)
    RunFolder.create(TrainConfig(out=tmp_path, epochs=3)).close()
    assert RunFolder.open(tmp_path).read_config().epochs == 3


def test_a_failure_before_anything_was_made_leaves_nothing(tmp_path: Path) -> None:
    for made in (tmp_path / "new", tmp_path / "there"):
        if made.name == "there":
            made.mkdir()
            (made / ".DS_Store").touch()
        with pytest.raises(WorkFailed), RunFolder.create(TrainConfig(out=made)):
            raise WorkFailed
        assert not (made / "config.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with pytest.raises(Interrupted), RunFolder.create(TrainConfig(out=tmp_path / "new")) as folder:
        raise Interrupted("stopped")
    assert folder.read_config().out == tmp_path / "new"


def test_a_refusal_to_go_on_takes_nothing_away(tmp_path: Path) -> None:
    RunFolder.create(TrainConfig(out=tmp_path / "run")).close()
    with pytest.raises(ConfigError), RunFolder.open_to_go_on(tmp_path / "run"):
        raise ConfigError("other settings")
    assert RunFolder.open(tmp_path / "run").read_config() == TrainConfig(out=tmp_path / "run")


def test_one_program_at_a_time(tmp_path: Path) -> None:
    config = TrainConfig(out=tmp_path / "run", overwrite=True)
    with RunFolder.create(config) as folder:
        for again in (RunFolder.create, lambda _: RunFolder.open_to_go_on(folder.path)):
            with pytest.raises(ConfigError, match=f"another program is at work.*{os.getpid()}"):
                again(config)
        RunFolder.open(folder.path)  # to look at it is fine
    assert not (folder.path / ".lock").exists()
    RunFolder.open_to_go_on(folder.path).close()
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(folder.path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"locked\n"
    with pytest.raises(ConfigError, match=f"process {child.pid} on "):
        RunFolder.open_to_go_on(folder.path)
    child.kill()
    child.communicate()
    RunFolder.open_to_go_on(folder.path).close()  # the system took the lock back


HOLD_LOCK = """
import sys, time
from pathlib import Path
from mobilenetv2.training.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_only_one_of_many_gets_the_lock(tmp_path: Path) -> None:
    """Also where its last holder deletes the file that others have just opened."""
    inside = 0
    most = 0
    taken = 0
    guard = threading.Lock()

    def work(_: int) -> None:
        nonlocal inside, most, taken
        own = 0
        while own < 100:
            try:
                lock = RunLock(tmp_path)
            except ConfigError:
                continue
            own += 1
            with guard:
                inside, taken = inside + 1, taken + 1
                most = max(most, inside)
            with guard:
                inside -= 1
            lock.release()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == 1
    assert taken == 400


def test_a_refused_folder_is_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"thesis\.txt"):
            RunFolder.create(TrainConfig(out=tmp_path, overwrite=overwrite))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("torn", ["", '{"event": "st', "\0\0\0", "\n", '{"event": "step"'])
def test_a_torn_end_is_dropped_and_the_next_lines_follow(tmp_path: Path, torn: str) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text(to_lines(STEPS[:3]) + torn)
    folder.rewind_events(3, 0)
    folder.append_events(STEPS[3:])
    assert list(folder.read_events()) == STEPS


def test_what_will_come_again_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    epoch, end = {"event": "epoch", "epoch": 1, "step": 5}, {"event": "end", "step": 5}
    folder.append_events([*STEPS, epoch, end])
    folder.rewind_events(5, 1)
    assert list(folder.read_events()) == [*STEPS, epoch]
    folder.rewind_events(5, 0)  # stopped between the last step and the end of the epoch
    assert list(folder.read_events()) == STEPS
    folder.rewind_events(2, 0)
    assert list(folder.read_events()) == STEPS[:2]
    folder.rewind_events(0, 0)
    assert list(folder.read_events()) == []


def test_no_events_yet(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).read_events()) == []
