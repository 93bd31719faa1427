"""What a run that has not ended gives to those who use its classifier."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mobilenetv2
from mobilenetv2.errors import DataError, ModelFileError, WorkFailed
from mobilenetv2.shipping.int8 import training_pictures
from mobilenetv2.training.checkpoints import Checkpoint, save_archive
from mobilenetv2.training.load import load, own_data

RunCli = Callable[..., tuple[int, str, str]]


def test_the_best_epoch_of_a_run_that_has_not_ended(unfinished: Path) -> None:
    told: list[str] = []
    weights = load(unfinished, told.append).network.state_dict()
    best = mobilenetv2.load(unfinished / "best.pth.tar").network.state_dict()
    assert all(torch.equal(weights[name], best[name]) for name in best)
    assert told == [f"{unfinished}: this run has not ended; best.pth.tar was taken, from epoch 1"]


def test_a_damaged_best_epoch_is_passed_over(unfinished: Path) -> None:
    best = unfinished / "best.pth.tar"
    best.write_bytes(best.read_bytes()[:-100])
    told: list[str] = []
    assert load(unfinished, told.append).labels == ("dark", "light")
    assert "best.pth.tar: not a whole checkpoint" in told[0]
    assert "last.pth.tar was taken, from epoch 1" in told[-1]


def test_what_has_learned_nothing_names_no_pictures(
    unfinished: Path, few_pictures: Path, run_cli: RunCli
) -> None:
    """Before its first step a run saves random weights, to go on from."""
    (unfinished / "best.pth.tar").unlink()
    last = unfinished / "last.pth.tar"
    checkpoint = Checkpoint.load(last)
    checkpoint.epoch = 0
    save_archive(checkpoint.to_archive(), last)
    picture = next(few_pictures.rglob("*.png"))
    code, out, error = run_cli("predict", unfinished, picture)
    assert (code, out) == (2, "")
    assert "this run has learned nothing yet; wait for its first epoch to end" in error
    checkpoint.step = 7
    save_archive(checkpoint.to_archive(), last)
    code, out, error = run_cli("predict", unfinished, picture)
    assert code == 0
    assert "light" in out
    assert "this run has not ended; last.pth.tar was taken, from step 7 of epoch 1" in error
    checkpoint.step = 0
    checkpoint.settings["transfer"]["weights"] = "imagenet"  # whose head was fitted by then
    save_archive(checkpoint.to_archive(), last)
    assert run_cli("predict", unfinished, picture)[0] == 0
    last.unlink()
    (unfinished / "previous.pth.tar").unlink()
    with pytest.raises(ModelFileError, match="has not saved a model yet"):
        load(unfinished)


@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_who_uses_a_run_that_has_not_ended_is_told(
    command: str, unfinished: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_now(*_: object) -> None:
        raise WorkFailed("not now")

    monkeypatch.setattr("mobilenetv2.shipping.benchmark.run", not_now)
    code, _, error = run_cli(command, unfinished)
    assert code == (1 if command == "benchmark" else 0)
    assert "this run has not ended; best.pth.tar was taken, from epoch 1" in error


@pytest.mark.parametrize("text", ["learning_rate: 3\n", "[", "data: {data: 7}\n"])
def test_settings_of_another_program_beside_a_model(
    unfinished: Path, tmp_path: Path, text: str
) -> None:
    """They say nothing of its data, and are nobody's mistake."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    model = Path(shutil.copy(unfinished / "best.pth.tar", folder))
    (folder / "config.yaml").write_text(text)
    with pytest.raises(
        ModelFileError, match=r"its data is unknown; name the data too.*config.yaml"
    ):
        own_data(model, None)
    with pytest.raises(DataError, match="no run is known: "):
        training_pictures(model, None, mobilenetv2.load(model))
