"""The run folder: never overwritten unasked; its events without gaps and doubles."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.training.run_folder import RUN_FILES, RunFolder, to_lines

STEPS = [{"event": "step", "step": step, "loss": 1.0} for step in range(1, 6)]


def test_many_at_once_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(RunFolder.create, [TrainConfig()] * 24))
    names = {folder.path.name for folder in folders}
    assert names == {"digits", *(f"digits-{number}" for number in range(2, 25))}


def test_a_run_named_by_a_path_is_called_by_its_last_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = TrainConfig().data.model_copy(update={"data": "a/b/../flowers/"})
    folder = RunFolder.create(TrainConfig(data=data))
    assert folder.path == Path("runs/flowers")


def test_leave_to_overwrite_is_not_written_down(tmp_path: Path) -> None:
    """Or `--config RUN/config.yaml` would destroy that run without being asked to."""
    asked = TrainConfig(out=tmp_path / "run", overwrite=True)
    folder = RunFolder.create(asked)
    again = folder.read_config()
    assert again == asked.model_copy(update={"overwrite": False})
    with pytest.raises(ConfigError, match="already holds a run"):
        RunFolder.create(again)


def test_overwriting_takes_the_files_of_a_run_and_no_others(tmp_path: Path) -> None:
    folder = RunFolder.create(TrainConfig(out=tmp_path))
    for name in (*RUN_FILES, "notes.txt"):
        (tmp_path / name).write_text("old")
    RunFolder.create(TrainConfig(out=tmp_path, overwrite=True))
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "notes.txt"}
    assert folder.config.read_text() != "old"


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
    folder.rewind_events(3)
    folder.append_events(STEPS[3:])
    assert list(folder.read_events()) == STEPS


def test_what_will_come_again_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    epoch, end = {"event": "epoch", "step": 5}, {"event": "end", "step": 5}
    folder.append_events([*STEPS, epoch, end])
    folder.rewind_events(5)
    assert list(folder.read_events()) == [*STEPS, epoch]
    folder.rewind_events(2)
    assert list(folder.read_events()) == STEPS[:2]
    folder.rewind_events(0)
    assert list(folder.read_events()) == []


def test_no_events_yet(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).read_events()) == []
