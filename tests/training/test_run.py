"""Whole runs: the run folder, the result, stopping and going on."""

import io
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import mobilenetv2
from mobilenetv2.errors import ConfigError, ModelFileError, NonFiniteLoss
from mobilenetv2.files import write_text
from mobilenetv2.network.cpp_inference import CppInference
from mobilenetv2.training import loop
from mobilenetv2.training.checkpoints import Checkpoint, to_archive
from mobilenetv2.training.run_folder import RunFolder

TINY: dict[str, Any] = {
    "width": 0.05, "epochs": 2, "batch_size": 256, "lr": 0.05, "warmup_epochs": 0.5,
    "strides": None, "fast_ops": "off",
}  # fmt: skip
RICH = {**TINY, "ema": 0.9, "dropout": 0.3, "mixup": 0.3, "rotate": 10, "clip_norm": 1.0}
TIMES = ("seconds", "training_seconds", "images_per_second", "run")

RUN_FILES = {
    "config.yaml", "metrics.jsonl", "result.json", "curves.png", "confusion.png", "mistakes.png",
    "mistakes.csv", "last.pth.tar", "best.pth.tar", "model.safetensors", "first-batch.png",
}  # fmt: skip
RESULT_KEYS = {
    "data": str, "network": str, "width": float, "params": int, "madds": int, "epochs": int,
    "steps": int, "seconds": float, "images_per_second": float, "train_accuracy": float,
    "val_accuracy": float, "val_loss": float, "test_accuracy": float, "test_loss": float,
    "best_epoch": int, "seed": int, "version": str,
}  # fmt: skip


def timeless(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in TIMES}


def events(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [timeless(json.loads(line)) for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return mobilenetv2.load(run).network.state_dict()


def same_run(a: Path, b: Path) -> None:
    assert events(a) == events(b)
    ours, theirs = (timeless(json.loads((run / "result.json").read_text())) for run in (a, b))
    assert ours == theirs
    assert all(
        torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True)
    )


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with everything on that draws random numbers."""
    out = tmp_path_factory.mktemp("runs") / "rich"
    mobilenetv2.train(mobilenetv2.configure("digits", out=out, **RICH))
    return out


def test_the_run_folder_and_the_result_keep_their_contract(rich_run: Path) -> None:
    assert {path.name for path in rich_run.iterdir()} == RUN_FILES
    result = json.loads((rich_run / "result.json").read_text())
    for name, kind in RESULT_KEYS.items():
        assert isinstance(result[name], kind), name
    for name in ("train_accuracy", "val_accuracy", "test_accuracy"):
        assert 0 <= result[name] <= 1
    assert result["steps"] == 2 * math.ceil(1293 / 256)
    assert result["best_epoch"] in (1, 2)

    found = events(rich_run)
    assert [e["step"] for e in found if e["event"] == "step"] == list(range(1, 13))
    assert [e["epoch"] for e in found if e["event"] == "epoch"] == [1, 2]
    assert found[-1]["event"] == "end"
    epoch = next(e for e in found if e["event"] == "epoch")
    assert epoch["gap"] == epoch["train_accuracy"] - epoch["val_accuracy"]
    for path in rich_run.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_the_schedule_was_stepped_after_every_batch(rich_run: Path) -> None:
    lrs = [event["lr"] for event in events(rich_run) if event["event"] == "step"]
    expected = [0.05 * (step + 1) / 3 for step in range(3)]
    expected += [0.05 * (1 + math.cos(math.pi * step / 9)) / 2 for step in range(9)]
    assert lrs == pytest.approx(expected)


def test_settings_are_written_before_and_read_after(rich_run: Path) -> None:
    config = RunFolder.open(rich_run).read_config()
    assert config.augment.mixup == 0.3
    assert config.network.strides == (2, 1, 1, 1, 1, 1, 1, 1)
    assert config.optimizer.lr == 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_same_seed_same_bits_other_seed_other_bits(rich_run: Path, tmp_path: Path) -> None:
    mobilenetv2.train(mobilenetv2.configure("digits", out=tmp_path / "again", **RICH))
    same_run(rich_run, tmp_path / "again")
    settings = {**RICH, "epochs": 1, "warmup_epochs": 0}
    mobilenetv2.train(mobilenetv2.configure("digits", out=tmp_path / "other", seed=1, **settings))
    assert events(tmp_path / "other")[0]["loss"] != events(rich_run)[0]["loss"]


def test_evaluate_reproduces_the_result_to_the_last_digit(
    rich_run: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(rich_run, moved)
    code, out, _ = run_cli("evaluate", moved, "--report", tmp_path / "report")
    assert code == 0
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    result = json.loads((rich_run / "result.json").read_text())
    assert report["test"]["accuracy"] == result["test_accuracy"]
    assert report["test"]["loss"] == result["test_loss"]
    assert report["validation"]["accuracy"] == result["val_accuracy"]
    assert report["validation"]["loss"] == result["val_loss"]
    assert f"{result['test_accuracy']:.2%}" in out


@pytest.mark.parametrize("fast_ops", ["cpp", "torch"])
def test_what_trains_a_run_measures_it(
    fast_ops: str,
    quick: Callable[..., mobilenetv2.TrainConfig],
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
    compiler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And `evaluate` measures with the same, to the last digit; where it cannot, it says so."""
    calls = []
    first = CppInference.logits
    monkeypatch.setattr(
        CppInference, "logits", lambda *given, **more: calls.append(1) or first(*given, **more)
    )

    def measured(model: str = "run") -> tuple[float, bool, bool]:
        """The loss, whether compiled kernels found it, and whether that was excused."""
        calls.clear()
        code, _, err = run_cli("evaluate", tmp_path / model, "--report", tmp_path / "report")
        assert code == 0
        report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
        return report["validation"]["loss"], bool(calls), "digits may differ: no comp" in err

    validated = []
    finish = loop.measure
    monkeypatch.setattr(
        loop, "measure", lambda *given: validated.append(len(calls)) or finish(*given)
    )
    mobilenetv2.train(quick(epochs=1, fast_ops=fast_ops))
    compiled = fast_ops == "cpp"
    # One look to see that it agrees; then the sample of training pictures and validation.
    assert validated == [3 if compiled else 0]
    assert (len(calls) > 3) == compiled
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["measured_by"] == fast_ops
    assert measured() == (result["val_loss"], compiled, False)
    assert measured("run/best.pth.tar") == (result["val_loss"], compiled, False)
    monkeypatch.setattr("mobilenetv2.runtimes.engine.why_not", lambda *_: "no compiler")
    loss, *rest = measured()
    assert loss == pytest.approx(result["val_loss"], rel=1e-4)
    assert rest == [False, compiled]


def test_every_form_of_a_model_loads(rich_run: Path) -> None:
    best = weights(rich_run)
    for name in ("model.safetensors", "best.pth.tar"):
        assert all(
            torch.equal(a, b)
            for a, b in zip(best.values(), weights(rich_run / name).values(), strict=True)
        )
    assert mobilenetv2.load(rich_run / "last.pth.tar").labels == tuple("0123456789")
    with pytest.raises(ModelFileError, match="no such run folder"):
        mobilenetv2.load(rich_run / "nothing")
    with pytest.raises(ModelFileError, match="not a run folder"):
        mobilenetv2.load(rich_run.parent)


# ------------------------------------------------------------------- stop and go on

CHILD = """
import sys, mobilenetv2, json
from mobilenetv2.cli import main
main(json.loads(sys.argv[1]))
"""


def command(out: Path) -> list[str]:
    flags: list[str] = []
    for name, value in RICH.items():
        if value is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    arguments = ["train", "digits", "--out", str(out), "--strides", "2", *"1111111", *flags]
    return [sys.executable, "-c", CHILD, json.dumps(arguments)]


def started(out: Path) -> subprocess.Popen[str]:
    """A run in another process, stopped as soon as it has told of its first steps."""
    child = subprocess.Popen(
        command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return child


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_goes_on_to_the_same_end(
    rich_run: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    child = started(out)
    child.send_signal(number)
    _, stderr = child.communicate(timeout=60)
    if child.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert child.returncode == code, stderr
    assert not (out / "result.json").exists()
    if number != signal.SIGKILL:
        assert f"mobilenetv2 train --resume {out}" in stderr.replace("\n", "")
        assert "Traceback" not in stderr
    mobilenetv2.resume(out)
    same_run(rich_run, out)


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_before_the_first_step_is_a_place_to_go_on_from(rich_run: Path, tmp_path: Path) -> None:
    from mobilenetv2.training.loop import Training

    def killed(*_: Any) -> None:
        raise KeyError("as if the power had failed")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(Training, "_train_epoch", killed)
        mobilenetv2.train(mobilenetv2.configure("digits", out=tmp_path / "run", **RICH))
    mobilenetv2.resume(tmp_path / "run")
    same_run(rich_run, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_every_step_is_a_place_to_go_on_from(rich_run: Path, tmp_path: Path) -> None:
    """Stop in the middle of an epoch, and again, and compare the end."""
    out = tmp_path / "run"
    config = mobilenetv2.configure("digits", out=out, **RICH)
    from mobilenetv2.training import train as module
    from mobilenetv2.training.loop import Training

    original = Training._train_step
    for stop_at in (2, 5, 9):
        done = 0

        def step(self: Training, batch: Any) -> Any:
            nonlocal done
            outcome = original(self, batch)
            if self.history.steps == stop_at:  # noqa: B023
                signal.raise_signal(signal.SIGINT)
            return outcome

        Training._train_step = step  # type: ignore[method-assign]
        try:
            with pytest.raises(mobilenetv2.Interrupted, match=f"after step {stop_at}"):
                module.train(config) if stop_at == 2 else module.resume(out)
        finally:
            Training._train_step = original  # type: ignore[method-assign]
    module.resume(out)
    same_run(rich_run, out)


def test_torn_metrics_are_mended(rich_run: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    text = (rich_run / "metrics.jsonl").read_text()
    folder.metrics.write_text(text[: text.index('"step": 5') + 20])
    folder.rewind_events(3, 0)
    assert [event["step"] for event in folder.read_events()] == [1, 2, 3]


def test_what_cannot_go_on_is_said(rich_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this run is finished"):
        mobilenetv2.resume(rich_run)
    with pytest.raises(ModelFileError, match="not a run folder"):
        mobilenetv2.resume(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(rich_run, copy)
    (copy / "result.json").unlink()
    text = (copy / "config.yaml").read_text()
    write_text(copy / "config.yaml", text.replace("width: 0.05", "width: 0.35"))
    with pytest.raises(ConfigError, match=r"width was 0\.05 and is 0\.35"):
        mobilenetv2.resume(copy)
    for name in ("last.pth.tar", "best.pth.tar"):
        (copy / name).write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"last\.pth\.tar: not a whole checkpoint"):
        mobilenetv2.resume(copy)


# ---------------------------------------------------------------------- checkpoints


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "proof"
    for name, write in (
        ("a.pth.tar", lambda path: path.write_bytes(to_archive({"format": Payload(target)}))),
        ("b.pth.tar", lambda path: torch.save({"format": Payload(target)}, path)),
        ("c.pth.tar", lambda path: path.write_bytes(pickle.dumps(Payload(target)))),
    ):
        write(tmp_path / name)
        words = "refused" if name == "a.pth.tar" else "not a whole checkpoint"
        with pytest.raises(ModelFileError, match=words):
            mobilenetv2.load(tmp_path / name)
    assert not target.exists()


def test_damaged_checkpoints_are_named(rich_run: Path, tmp_path: Path) -> None:
    contents = (rich_run / "last.pth.tar").read_bytes()
    path = tmp_path / "x.pth.tar"
    for damaged in (b"", b"x", contents[:100], contents[: len(contents) // 2], contents[:-50]):
        path.write_bytes(damaged)
        with pytest.raises(ModelFileError, match=r"x\.pth\.tar"):
            Checkpoint.load(path)
    path.write_bytes(to_archive({"state_dict": {}}))
    with pytest.raises(ModelFileError, match="not a checkpoint of this program"):
        Checkpoint.load(path)
    stored = torch.load(rich_run / "last.pth.tar", weights_only=True)
    del stored["optimizer"]
    path.write_bytes(to_archive(stored))
    with pytest.raises(ModelFileError, match="incomplete"):
        Checkpoint.load(path)


# ------------------------------------------------------------------ kinds of pictures


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("folder", "settings"),
    [
        ({"size": (20, 20), "mode": "L", "count": 9}, {}),
        ({"classes": ("a", "b", "c"), "count": 5}, {"network": "first-version"}),
        ({"count": 9}, {"batch_size": 1, "optimizer": "rmsprop", "lr": 0.01}),
        ({"size": (40, 24), "count": 9}, {"train_size": (24, 17), "crop": 0.5}),
        *(
            pytest.param(folder, settings, marks=pytest.mark.slow)
            for folder, settings in (
                ({"size": (40, 24), "count": 9}, {"flip": True, "colour_jitter": 0.2}),
                ({"size": (100, 120), "count": 4}, {"image_size": 64, "weights": "none"}),
                ({"count": 9}, {"batch_size": 16, "optimizer": "adamw", "lr": 0.001}),
                ({"count": 9}, {"batch_size": 1000, "lr": "auto", "schedule": "multistep"}),
            )
        ),
    ],
)
def test_all_kinds_of_pictures_and_settings(
    picture_folder: Callable[..., Path], tmp_path: Path, folder: Any, settings: dict[str, Any]
) -> None:
    data = str(picture_folder(**folder))
    options = {**TINY, "batch_size": 4, "epochs": 2, **settings}
    result = mobilenetv2.train(mobilenetv2.configure(data, out=tmp_path / "run", **options))
    assert result["test_accuracy"] is None
    assert result["test_loss"] is None
    assert 0 <= result["val_accuracy"] <= 1


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"width": 0.35}, "Could not download"),
        ({}, "Could not download"),
        ({"network": "first-version"}, "there are none for"),
        ({"width": 0.5, "without": "h5py"}, "needs h5py"),
    ],
)
def test_photos_without_weights_start_from_nothing(
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    reason: str,
) -> None:
    monkeypatch.setenv("MOBILENETV2_CACHE", str(tmp_path / "cache"))
    if missing := settings.get("without"):
        monkeypatch.setitem(sys.modules, missing, None)
        settings = {name: value for name, value in settings.items() if name != "without"}
    photos = str(picture_folder(size=(100, 120), count=4))
    told = io.StringIO()
    # From the empty cache, operations might have to be compiled anew.
    options = {
        **settings, "epochs": 1, "image_size": 32, "fast_ops": "off", "out": tmp_path / "run"
    }  # fmt: skip
    result = mobilenetv2.train(mobilenetv2.configure(photos, **options), Console(file=told))
    assert result["weights"] == "none"
    notes = told.getvalue()
    assert "no pretrained weights: " in notes
    assert reason in notes
    config = RunFolder.open(tmp_path / "run").read_config()
    wanted = mobilenetv2.configure(photos, weights="none", **options)
    assert (config.optimizer, config.augment) == (wanted.optimizer, wanted.augment)
    assert config.transfer.weights == "none"


def test_a_loss_that_leaves_the_numbers_stops_the_run(tmp_path: Path) -> None:
    settings = {**TINY, "lr": 100.0, "warmup_epochs": 0, "momentum": 0.99, "epochs": 50}
    config = mobilenetv2.configure(
        "digits", out=tmp_path / "run", network="first-version", **settings
    )
    with pytest.raises(NonFiniteLoss, match=r"loss is (nan|inf).* step \d+ .*--lr"):
        mobilenetv2.train(config)
    checkpoint = Checkpoint.load(tmp_path / "run" / "last.pth.tar")
    assert all(t.isfinite().all() for t in checkpoint.weights.values() if t.is_floating_point())
    assert not (tmp_path / "run" / "result.json").exists()


def test_weights_that_left_the_numbers_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's loss is known before its update."""
    step, steps = loop.Training._train_step, []

    def broken(training: Any, batch: Any) -> Any:
        outcome = step(training, batch)
        steps.append(outcome)
        if len(steps) == 3:
            training.network.features[0][1].running_var[0] = float("inf")
        return outcome

    monkeypatch.setattr(loop.Training, "_train_step", broken)
    config = mobilenetv2.configure(
        "digits", out=tmp_path / "run", **TINY, checkpoint_every="1steps"
    )
    words = r"a number of features\.0\.1\.running_var is inf at step 3"
    with pytest.raises(NonFiniteLoss, match=words):
        mobilenetv2.train(config)
    for name in ("last", "previous"):
        saved = Checkpoint.load(tmp_path / "run" / f"{name}.pth.tar")
        assert all(t.isfinite().all() for t in saved.weights.values() if t.is_floating_point())
        assert saved.step < 3


# ------------------------------------------------------------------- what is shown


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_a_log_file_gets_one_plain_line_per_epoch(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        config = mobilenetv2.configure("digits", out=tmp_path / "run", **TINY)
        mobilenetv2.train(config, Console(file=log))
    text = (tmp_path / "log").read_text()
    lines = [line for line in text.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    pattern = (
        r"epoch 1/2  train \d+\.\d{4} [\d.]+%  validation \d+\.\d{4} [\d.]+%  "
        r"gap [+-][\d.]+ points  lr [\d.e-]+  [\d,]+ pictures/s  [\d.]+ s"
    )
    assert re.fullmatch(pattern, lines[0]), lines[0]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


@pytest.mark.usefixtures("undrawn")
def test_a_terminal_gets_a_live_bar(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        console = Console(file=log, force_terminal=True, width=120)
        config = mobilenetv2.configure("digits", out=tmp_path / "run", **TINY)
        mobilenetv2.train(config, console)
    text = (tmp_path / "log").read_text()
    for word in ("loss", "accuracy", "lr", "pictures/s"):
        assert word in text
    assert "\x1b[" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.slow
def test_tensorboard_gets_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = mobilenetv2.configure("digits", out=tmp_path, tensorboard=True, **TINY)
    mobilenetv2.train(config)
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    losses = [event.value for event in accumulator.Scalars("step/loss")]
    assert losses == pytest.approx([e["loss"] for e in events(tmp_path) if e["event"] == "step"])
    assert len(accumulator.Scalars("epoch/val_accuracy")) == 2
