"""A run that was stopped anywhere goes on to the end that it would have had."""

import json
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
from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import Interrupted, WorkFailed
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.training import loop as module
from mobilenetv2.training.checkpoints import Checkpoint, save_archive
from mobilenetv2.training.find_lr import RangeTest
from mobilenetv2.training.loop import Training
from mobilenetv2.training.run_folder import RunFolder

Quick = Callable[..., TrainConfig]
SLOW = pytest.mark.slow
TIMES = {"seconds", "training_seconds", "images_per_second", "run"}


def timeless(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in TIMES}


def events(run: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    assert events(a) == events(b)
    ours, theirs = (timeless(json.loads((run / "result.json").read_text())) for run in (a, b))
    assert ours == theirs
    for name in ("last.pth.tar", "best.pth.tar"):
        first, second = Checkpoint.load(a / name), Checkpoint.load(b / name)
        for key, tensor in first.weights.items():
            assert torch.equal(tensor, second.weights[key]), (name, key)
        assert first.history["steps"] == second.history["steps"]
        assert torch.equal(first.random_state, second.random_state)


def out_of(config: TrainConfig) -> Path:
    assert config.out is not None
    return config.out


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as torchvision names them, for 1,000 classes; small, and never trained."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "some.pth"
    torch.save(MobileNetV2(num_classes=1000, width=0.05).state_dict(), path)
    return path


class PowerCut(BaseException):
    """Nothing in the product catches it."""


def cut_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool) -> None:
    """Fail before or after the ``call``-th call, counted from 1."""
    original = getattr(owner, name)
    calls = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise PowerCut
        result = original(*arguments, **options)
        if calls == call:
            raise PowerCut
        return result

    patch.setattr(owner, name, called)


PLACES = [
    (Training, "_train_step", 2, True),
    pytest.param(Training, "_train_step", 6, False, marks=SLOW),
    pytest.param(Training, "_validate_epoch", 1, True, marks=SLOW),
    # 1 is the start, 2 and 3 are best and last of the first epoch, 4 and 5 of the second
    pytest.param(module, "save_archive", 2, False, marks=SLOW),
    pytest.param(module, "save_archive", 2, True, marks=SLOW),
    pytest.param(module, "save_archive", 3, False, marks=SLOW),
    (module, "save_archive", 5, False),
    pytest.param(RunFolder, "append_events", 2, True, marks=SLOW),
    pytest.param(module, "deliver", 1, True, marks=SLOW),
    pytest.param(RunFolder, "write_result", 1, False, marks=SLOW),
]


@pytest.fixture(scope="module")
def whole(quick_settings: Quick, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    mobilenetv2.train(quick_settings(out, **RICH))
    return out


RICH: dict[str, Any] = {
    "ema": 0.5, "dropout": 0.5, "cutmix": 1.0, "mixup": 1.0, "shift": 0.2, "erase": 0.5,
    "optimizer": "adamw", "lr": 0.01, "schedule": "multistep", "clip_norm": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "call", "after"), PLACES)
def test_a_power_cut_anywhere_changes_nothing(
    quick: Quick, whole: Path, owner: Any, name: str, call: int, after: bool
) -> None:
    config = quick(**RICH)
    run = out_of(config)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, owner, name, call, after=after)
        mobilenetv2.train(config)
    assert not (run / "result.json").exists()
    mobilenetv2.resume(run)
    assert_same(whole, run)


def test_a_power_cut_while_going_on_changes_nothing(quick: Quick, whole: Path) -> None:
    config = quick(**RICH)
    for owner, name, begin in (
        (Training, "_train_step", lambda: mobilenetv2.train(config)),
        (RunFolder, "rewind_events", lambda: mobilenetv2.resume(out_of(config))),
        (Training, "_train_step", lambda: mobilenetv2.resume(out_of(config))),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
            cut_at(patch, owner, name, 1, after=True)
            begin()
    mobilenetv2.resume(out_of(config))
    assert_same(whole, out_of(config))


def test_the_rate_that_was_found_is_kept(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []

    def find_lr(*_: Any) -> RangeTest:
        searches.append(1)
        return RangeTest([], [], [], 0.03, "because")

    monkeypatch.setattr(module, "find_lr_of", find_lr)
    config = quick(lr="auto")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, Training, "_train_step", 2, after=True)
        mobilenetv2.train(config)
    result = mobilenetv2.resume(out_of(config))
    assert result["lr"] == 0.03
    assert [event["lr"] for event in events(out_of(config))][:1] == [0.03]
    assert len(searches) == 1


@SLOW
def test_fast_operations_give_the_same_bits_again(quick: Quick) -> None:
    settings = {**RICH, "fast_ops": "auto"}
    mobilenetv2.train(quick("one", **settings))
    config = quick("cut", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, Training, "_train_step", 5, after=True)
        mobilenetv2.train(config)
    mobilenetv2.resume(out_of(config))
    assert_same(out_of(quick("one")), out_of(config))


LONG_WORK = [
    # during the second validation; while the model is delivered; while it is drawn
    ({}, (Training, "_measure", 3), "after step 6; everything is saved"),
    pytest.param({}, (module, "deliver", 1), "after step 6; everything is saved", marks=SLOW),
    pytest.param({}, (module, "measure", 1), "after step 6; everything is saved", marks=SLOW),
    # before anything could be saved
    ({"lr": "auto"}, (module, "find_lr_of", 1), "before the first step"),
    pytest.param(
        {"weights": "some"}, (module, "fit_first_head", 1), "before the first step", marks=SLOW
    ),
]


@pytest.mark.parametrize(("settings", "place", "words"), LONG_WORK)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=SLOW)])
def test_a_signal_during_long_work_leaves_it_at_once(
    quick: Quick,
    whole: Path,
    weights_file: Path,
    settings: dict[str, Any],
    place: tuple[Any, str, int],
    words: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "weights" in settings:
        settings = {"weights": str(weights_file), "tune": "head", "image_size": 32}
    config = quick(**{**RICH, **settings})
    run = out_of(config)
    owner, name, call = place
    calls = 0
    original = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(number)
            raise AssertionError("the signal did not leave at once")
        return original(*arguments)

    if name == "find_lr_of":
        monkeypatch.setattr(module, name, lambda *_: RangeTest([], [], [], 0.03, "because"))
        original = module.find_lr_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(Interrupted, match=f"{number.name} {words}") as stopped:
            mobilenetv2.train(config)
    assert stopped.value.exit_code == (143 if number == signal.SIGTERM else 130)
    assert str(run) in str(stopped.value)
    mobilenetv2.resume(run)
    if not settings:
        assert_same(whole, run)
    else:
        mobilenetv2.train(quick("undisturbed", **{**RICH, **settings}))
        assert_same(out_of(quick("undisturbed")), run)


def test_what_was_stopped_before_the_first_step_may_be_begun_anew(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_lr(*_: Any) -> RangeTest:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find_lr_of", find_lr)
        with pytest.raises(Interrupted, match="before the first step"):
            mobilenetv2.train(quick(lr="auto"))
    assert mobilenetv2.train(quick())["lr"] == 0.05


def test_a_failed_search_for_a_learning_rate_leaves_nothing(
    quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_lr(*_: Any) -> RangeTest:
        raise WorkFailed("the loss never fell")

    monkeypatch.setattr(module, "find_lr_of", find_lr)
    with pytest.raises(WorkFailed, match="never fell"):
        mobilenetv2.train(quick(lr="auto"))
    assert not out_of(quick()).exists()


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=SLOW)])
def test_a_cut_around_the_end_of_a_solved_head_doubles_nothing(
    quick: Quick, weights_file: Path, after: bool
) -> None:
    settings = {"weights": str(weights_file), "tune": "head", "image_size": 32}
    mobilenetv2.train(quick("whole", **settings))
    config = quick("cut", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, module, "save_archive", 2, after=after)  # best, after the event was written
        mobilenetv2.train(config)
    assert [event["event"] for event in events(out_of(config))] == ["epoch"]
    mobilenetv2.resume(out_of(config))
    assert_same(out_of(quick("whole")), out_of(config))


@pytest.mark.parametrize(
    ("name", "call"), [("_train_epoch", 1), pytest.param("_train_step", 2, marks=SLOW)]
)
def test_a_cut_in_fine_tuning_changes_nothing(
    quick: Quick, weights_file: Path, name: str, call: int
) -> None:
    """The average begins with the pretrained weights, also where no step was done yet."""
    settings = {"weights": str(weights_file), "tune": "all", "image_size": 32, "ema": 0.8}
    mobilenetv2.train(quick("whole", **settings))
    config = quick("cut", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, Training, name, call, after=False)
        mobilenetv2.train(config)
    mobilenetv2.resume(out_of(config))
    assert_same(out_of(quick("whole")), out_of(config))


def test_checkpoints_within_an_epoch(quick: Quick, whole: Path) -> None:
    config = quick(**RICH, checkpoint_every="1steps")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, Training, "_train_step", 3, after=False)
        mobilenetv2.train(config)
    last = Checkpoint.load(out_of(config) / "last.pth.tar")
    assert (last.epoch, last.step, last.history["steps"]) == (0, 2, 2)
    assert last.history["training_seconds"] > 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, Training, "_validate_epoch", 1, after=False)
        mobilenetv2.resume(out_of(config))  # its step 3 is the last of the epoch
    assert Checkpoint.load(out_of(config) / "last.pth.tar").step == 3
    mobilenetv2.resume(out_of(config))
    assert_same(whole, out_of(config))


SLOW_STEPS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background start without it
from mobilenetv2.training.loop import Training
from mobilenetv2.cli import main
step = Training._train_step
def slow(self, batch):
    outcome = step(self, batch)
    print("stepped", flush=True)
    time.sleep(30)
    return outcome
Training._train_step = slow
main(sys.argv[1:])
"""


@SLOW
@pytest.mark.parametrize(
    ("second", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_a_second_signal_leaves_at_once(
    few_pictures: Path, tmp_path: Path, second: signal.Signals, code: int
) -> None:
    arguments = ["train", str(few_pictures), "--out", str(tmp_path / "run"), "--fast-ops", "off"]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_STEPS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert any(line == "stepped\n" for line in child.stdout)
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None  # it waits for the end of the step
    started = time.monotonic()
    child.send_signal(second)
    _, stderr = child.communicate(timeout=20)
    assert time.monotonic() - started < 10
    assert child.returncode == code
    assert "Traceback" not in stderr
    left = Checkpoint.load(tmp_path / "run" / "last.pth.tar")
    assert (left.epoch, left.step) == (0, 0), "whole, from before the step that was cut"


def test_a_damaged_best_checkpoint_costs_no_run(unfinished: Path) -> None:
    best = unfinished / "best.pth.tar"
    best.write_bytes(best.read_bytes()[:-100])
    assert mobilenetv2.load(unfinished).labels == ("dark", "light"), "the last one takes its place"
    result = mobilenetv2.resume(unfinished)
    assert (result["epochs"], result["best_epoch"]) == (2, 2)


def test_a_damaged_best_checkpoint_at_the_end(
    unfinished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last epoch is delivered, and says so."""
    original = Training._finish

    def damaged(self: Training) -> dict[str, Any]:
        self.folder.best.write_bytes(b"damaged")
        return original(self)

    monkeypatch.setattr(Training, "_finish", damaged)
    result = mobilenetv2.resume(unfinished, Console())
    assert result["best_epoch"] == 2
    assert "best.pth.tar" in capsys.readouterr().out


def test_settings_with_a_run_to_resume_go_on_with_it(unfinished: Path) -> None:
    result = mobilenetv2.train(mobilenetv2.configure("digits", resume=unfinished))
    assert result["run"] == str(unfinished)
    assert result["epochs"] == 2


@pytest.mark.parametrize("flag", ["--quiet", "--no-quiet", "--deterministic", "--tensorboard"])
def test_what_a_run_was_begun_with_may_be_said_again(
    quick: Callable[..., TrainConfig], run_cli: Any, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    config = quick(quiet=True, deterministic=True, tensorboard=True)
    with RunFolder.create(config):
        pass
    reached: list[TrainConfig] = []

    def note(path: Path, console: Any, config: TrainConfig) -> dict[str, Any]:
        reached.append(config)
        raise WorkFailed("reached")

    monkeypatch.setattr("mobilenetv2.training.train.resume", note)
    code, _, error = run_cli("train", "--resume", config.out, flag)
    assert (code, error) == (1, "mobilenetv2: reached\n")
    assert reached[0].quiet == (flag == "--quiet")  # a run that was begun quietly need not go on so


def test_a_first_version_that_had_a_width_goes_on(quick: Quick) -> None:
    """An earlier version of this program wrote one down for it, which meant nothing."""
    config = quick(network="first-version", image_size=28)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        cut_at(patch, Training, "_train_step", 4, after=True)
        mobilenetv2.train(config)
    run = RunFolder.open(out_of(config))
    text = run.config.read_text()
    assert "width: null" in text
    run.config.write_text(text.replace("width: null", "width: 1.0"))
    checkpoint = Checkpoint.load(run.last)
    checkpoint.settings["network"]["width"] = checkpoint.classifier["network"]["width"] = 1.0
    save_archive(checkpoint.to_archive(), run.last)
    assert mobilenetv2.resume(run.path)["epochs"] == 2
