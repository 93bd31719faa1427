"""Checkpoints: what goes in comes out, and what is wrong with a file or its settings is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mobilenetv2
from mobilenetv2.config import MachineConfig
from mobilenetv2.errors import ConfigError, ModelFileError
from mobilenetv2.files import write_text
from mobilenetv2.training import pick_up
from mobilenetv2.training.checkpoints import Checkpoint, save_archive, to_archive
from mobilenetv2.training.run_folder import RunFolder

Run = Callable[..., tuple[int, str, str]]


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_what_goes_in_comes_out(unfinished: Path) -> None:
    stored = Checkpoint.load(unfinished / "last.pth.tar")
    save_archive(stored.to_archive(), unfinished / "again.pth.tar")
    again = Checkpoint.load(unfinished / "again.pth.tar")
    assert equal(vars(stored), vars(again))
    assert stored.epoch == 1
    assert stored.step == 0
    assert stored.history["steps"] == 3
    assert stored.schedule["last_epoch"] == 3
    assert stored.settings["optimizer"]["lr"] == 0.05
    averaged = stored.averaged
    assert averaged is not None
    assert averaged.keys() == stored.weights.keys()
    assert not equal(averaged, stored.weights)


def test_plain_pytorch_can_read_it(unfinished: Path) -> None:
    stored = torch.load(unfinished / "last.pth.tar", weights_only=True)
    network = mobilenetv2.load(unfinished / "last.pth.tar").network
    network.load_state_dict(stored["weights"])


QUICK_CHANGES = ({"weights": {}}, {"averaged": {}}, {"history": {"x": 1}}, {"random_state": 5})
SLOW_CHANGES = (
    {"weights": 5},
    {"weights": {"a": 5}},
    {"classifier": 5},
    {"classifier": {}},
    {"settings": 5},
    {"history": 5},
    {"optimizer": 5},
    {"optimizer": {}},
    {"optimizer": {"state": {}, "param_groups": []}},
    {"schedule": 5},
    {"random_state": torch.zeros(3, dtype=torch.uint8)},
    {"epoch": "one"},
    {"step": None},
    {"lr": "much"},
    {"surprise": 1},
)


@pytest.mark.parametrize(
    "change",
    [*QUICK_CHANGES, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW_CHANGES)],
    ids=str,
)
def test_odd_contents_are_refused_in_words(unfinished: Path, change: dict[str, Any]) -> None:
    last = unfinished / "last.pth.tar"
    for spare in ("previous", "best"):
        (unfinished / f"{spare}.pth.tar").unlink()
    last.write_bytes(to_archive({**torch.load(last, weights_only=True), **change}))
    with pytest.raises(ModelFileError, match=r"last\.pth\.tar: "):
        mobilenetv2.resume(unfinished)
    assert not (unfinished / "result.json").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("optimizer: sgd", "optimizer: adam", "optimizer was sgd and is adam"),
        ("epochs: 2", "epochs: 3", "epochs was 2 and is 3"),
        ("batch_size: 6", "batch_size: 5", "batch_size was 6 and is 5"),
        ("seed: 0", "seed: 1", "seed was 0 and is 1"),
    ],
)
def test_a_run_goes_on_only_as_it_was_begun(
    unfinished: Path, old: str, new: str, words: str
) -> None:
    text = (unfinished / "config.yaml").read_text()
    write_text(unfinished / "config.yaml", text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        mobilenetv2.resume(unfinished)
    assert not (unfinished / ".lock").exists()


def test_settings_that_are_younger_than_the_run_have_their_defaults(unfinished: Path) -> None:
    for name in ("last", "previous"):
        path = unfinished / f"{name}.pth.tar"
        contents = torch.load(path, weights_only=True)
        del contents["settings"]["sync_norm"]
        del contents["settings"]["augment"]["mixup"]
        path.write_bytes(to_archive(contents))
    text = (unfinished / "config.yaml").read_text()
    older = "".join(line for line in text.splitlines(True) if "sync_norm" not in line)
    assert older != text
    write_text(unfinished / "config.yaml", older)
    config = RunFolder.open(unfinished).read_config()
    with pytest.raises(ConfigError, match=r"but sync_norm was True and is False\. Leave"):
        mobilenetv2.resume(unfinished, config=config.model_copy(update={"sync_norm": False}))
    last = unfinished / "last.pth.tar"
    contents = torch.load(last, weights_only=True)
    contents["settings"]["turbo"] = 11
    (unfinished / "previous.pth.tar").write_bytes(last.read_bytes())
    last.write_bytes(to_archive(contents))
    with pytest.raises(ConfigError, match="turbo was 11 and is no setting of this version"):
        mobilenetv2.resume(unfinished)
    (unfinished / "previous.pth.tar").replace(last)
    assert mobilenetv2.resume(unfinished)["steps"] == 6


def test_other_flags_are_refused_by_name(unfinished: Path, run_cli: Run) -> None:
    code, _, error = run_cli(
        "train", "--resume", unfinished, "--epochs", 50, "--lr", 0.05, "--ema", 0
    )
    assert code == 2
    assert "ema was 0.5 and is 0.0; epochs was 2 and is 50. Leave that out" in error
    assert "lr was" not in error
    for flags in (("--out", unfinished.parent / "other"), ("--overwrite",)):
        code, _, error = run_cli("train", "--resume", unfinished, *flags)
        assert code == 2
        assert "--out and --overwrite are for new runs" in error
    assert not (unfinished / ".lock").exists()
    _, _, notes = pick_up._read(
        RunFolder.open(unfinished),
        RunFolder.open(unfinished)
        .read_config()
        .model_copy(
            update={"machine": MachineConfig(precision="fp32", fast_ops="off", device="cpu")}
        ),
    )
    assert notes == (
        "goes on with precision fp32 instead of auto: its bits will not be those of a run in one "
        "go",
    )
    code, out, _ = run_cli(
        "train", "--resume", unfinished, "--batch-size", 6, "--quiet", "--checkpoint-every", "epoch"
    )
    assert code == 0
    assert len(out.splitlines()) == 1
    code, _, error = run_cli("train", "--resume", unfinished)
    assert code == 2
    assert "this run is finished" in error
    code, _, error = run_cli("train", "--resume", unfinished.parent)
    assert code == 2
    assert "not a run folder" in error


def test_other_pictures_are_refused(unfinished: Path, few_pictures: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(few_pictures, tmp_path / "moved"))
    config = RunFolder.open(unfinished).read_config()
    data = config.data.model_copy(update={"data": str(moved)})
    other = Path(shutil.copytree(unfinished, tmp_path / "other"))
    for number in range(4):
        (moved / "dark" / f"{number}.png").unlink()
    with pytest.raises(ConfigError, match="not those that the run was begun with"):
        mobilenetv2.resume(other, config=config.model_copy(update={"data": data}))


def test_what_only_says_where_may_change(unfinished: Path) -> None:
    text = (unfinished / "config.yaml").read_text()
    text = text.replace("quiet: false", "quiet: true").replace("device: auto", "device: cpu")
    write_text(unfinished / "config.yaml", text)
    moved = unfinished.rename(unfinished.parent / "moved")
    assert mobilenetv2.resume(moved)["steps"] == 6


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("mobilenetv2 checkpoint 3", "a newer version of this program"),
        ("mobilenetv2 checkpoint 99999999999", "a newer version of this program"),
        ("mobilenetv2 checkpoint 1", "an older version of this program"),
        ("mobilenetv2 checkpoint", "not a checkpoint of this program"),
        (None, "not a checkpoint of this program"),
    ],
)
def test_another_version_is_named(unfinished: Path, mark: str | None, words: str) -> None:
    last = unfinished / "last.pth.tar"
    last.write_bytes(to_archive({**torch.load(last, weights_only=True), "format": mark}))
    with pytest.raises(ModelFileError, match=words):
        Checkpoint.load(last)
