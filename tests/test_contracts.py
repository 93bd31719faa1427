"""What others may rely on, checked from outside: flags, files, exit codes, streams."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import mobilenetv2
from mobilenetv2.config import TrainConfig, flag_names
from mobilenetv2.data.named_sets import NAMES
from mobilenetv2.errors import WorkFailed
from mobilenetv2.training.checkpoints import to_archive

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--width", "0.05", "--epochs", "2", "--batch-size", "8", "--fast-ops", "off")


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose names are as people write them."""
    root = tmp_path_factory.mktemp("Meine Bilder [2024]") / "pets & co"
    random = np.random.default_rng(0)
    for place, name in enumerate(("Käfer [rot]", "猫")):
        (root / name).mkdir(parents=True)
        for number in range(9):
            low = 20 + 170 * place
            pixels = random.integers(low, low + 60, (12, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"Bild {number}.png")
    return root


@pytest.fixture(scope="module")
def logged(pets: Path) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """A whole run in a process of its own, its output sent to a place that knows ASCII only."""
    run = pets.parent / "run"
    done = subprocess.run(
        [sys.executable, "-m", "mobilenetv2", "train", str(pets), "--out", str(run), *QUICK],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "60"},
        check=False,
    )
    return run, done


def test_a_log_is_plain_and_stderr_is_silent(
    logged: tuple[Path, subprocess.CompletedProcess[bytes]],
) -> None:
    run, done = logged
    assert done.stderr == b""
    assert done.returncode == 0
    lines = done.stdout.decode("ascii").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/2", "2/2"]
    assert all(" gap " in line for line in lines if line.startswith("epoch "))
    assert all(character.isprintable() for line in lines for character in line)
    assert lines[-1].startswith("validation accuracy ")
    assert lines[-1].endswith(f": {run}")


def test_the_settings_are_all_written_down(
    logged: tuple[Path, subprocess.CompletedProcess[bytes]],
) -> None:
    run, _ = logged
    written = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for name, section in flag_names(TrainConfig).items():
        assert name in (written[section] if section else written), name
    assert written["network"]["width"] == 0.05
    assert written["overwrite"] is False


def test_no_test_set_is_null(logged: tuple[Path, subprocess.CompletedProcess[bytes]]) -> None:
    result = json.loads((logged[0] / "result.json").read_text(encoding="utf-8"))
    assert result["test_accuracy"] is None
    assert result["test_loss"] is None
    assert result["network"] == "mobilenetv2"
    assert result["version"] == mobilenetv2.__version__
    assert result["images_per_second"] > 0
    low, high = result["accuracy_interval"]
    assert 0 <= low <= result["val_accuracy"] <= high <= 1


def test_names_are_shown_as_they_are(
    logged: tuple[Path, subprocess.CompletedProcess[bytes]], pets: Path, run_cli: Run
) -> None:
    run, _ = logged
    code, out, error = run_cli("evaluate", run)
    assert (code, error) == (0, "")
    assert "Käfer [rot]" in out
    assert "猫" in out
    code, out, error = run_cli("predict", run, pets / "猫")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        str(pets / "猫" / f"Bild {number}.png") for number in range(9)
    ]
    assert all("Käfer [rot] " in line and "%" in line for line in lines)
    assert "Käfer [rot]" in run_cli("inspect", run)[1]
    assert "Käfer [rot]" in run_cli("inspect", pets)[1]


def test_from_python(logged: tuple[Path, subprocess.CompletedProcess[bytes]], pets: Path) -> None:
    classifier = mobilenetv2.load(logged[0])
    path = pets / "猫" / "Bild 3.png"
    with Image.open(path) as image:
        kinds = [str(path), path, image.copy(), np.asarray(image)]
    answers = classifier.predict(kinds)
    assert all(answer == answers[0] for answer in answers)
    assert {prediction.label for prediction in answers[0]} == {"Käfer [rot]", "猫"}
    assert sum(prediction.probability for prediction in answers[0]) == pytest.approx(1)
    assert answers[0][0].probability >= answers[0][1].probability


# ----------------------------------------------------------------- the command line

FLAGS = [
    "--data-dir", "--out", "--config", "--seed", "--device", "--quiet", "--network", "--width",
    "--weights", "--tune", "--epochs", "--batch-size", "--lr", "--optimizer", "--schedule",
    "--warmup-epochs", "--label-smoothing", "--resume", "--tensorboard", "--ema", "--clip-norm",
    "--mixup", "--cutmix",
]  # fmt: skip


def test_flags_have_no_prefix(run_cli: Run) -> None:
    words = run_cli("train", "--help")[1].replace(",", " ").split()
    for flag in FLAGS:
        assert flag in words, flag
    assert not [word for word in words if word.startswith("--") and "." in word]


@pytest.fixture
def settings_of(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """What `train` would train with, or its complaint."""
    seen: list[TrainConfig] = []

    def record(config: TrainConfig, _: object) -> dict[str, Any]:
        seen.append(config)
        raise mobilenetv2.WorkFailed("enough")

    def ask(*arguments: object) -> TrainConfig:
        code, _, error = run_cli("train", *arguments)
        assert code == 1, error
        return seen[-1]

    monkeypatch.setattr("mobilenetv2.training.train.train", record)
    return ask


@pytest.mark.parametrize(
    "data", [*NAMES[:1], *(pytest.param(one, marks=pytest.mark.slow) for one in NAMES[1:])]
)
def test_a_run_of_any_length_needs_no_other_flag(
    settings_of: Callable[..., TrainConfig], data: str
) -> None:
    usual = settings_of(data)
    for epochs in (1, 2, 3, 1000):
        config = settings_of(data, "--epochs", epochs)
        assert config.epochs == epochs
        assert config.schedule.warmup_epochs == min(usual.schedule.warmup_epochs, epochs / 3)
        assert config == mobilenetv2.configure(data, epochs=epochs)


def test_only_what_was_given_together_has_to_fit(
    settings_of: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("epochs: 200\nnesterov: false\ndata: mnist\n")
    config = settings_of("--config", file, "--momentum", "0", "--warmup-epochs", "50")
    assert (config.epochs, config.optimizer.momentum) == (200, 0)
    assert config.schedule.warmup_epochs == 50
    assert config.data.data == "mnist"
    config = settings_of("digits", "--config", file)
    assert config.data.data == "digits"
    assert config.network.strides == mobilenetv2.configure("digits").network.strides


def test_no_right_answer_is_zero_and_not_nothing(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {
        "test_accuracy": 0.0, "val_accuracy": 0.5, "accuracy_interval": [0.0, 0.1],
        "kept": "best", "best_epoch": 1, "epochs": 1, "steps": 9, "seconds": 1.0, "run": "runs/x",
    }  # fmt: skip
    monkeypatch.setattr("mobilenetv2.training.train.train", lambda *_: result)
    assert run_cli("train")[1].startswith("test accuracy 0.00%")


# ------------------------------------------------------------ wrong input, nothing lost


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("command", ["evaluate", "predict", "inspect"])
def test_a_malicious_file_is_refused_by_every_command(
    run_cli: Run, tmp_path: Path, command: str
) -> None:
    proof = tmp_path / "proof"
    model = tmp_path / "model.pth.tar"
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for write, words in (
        (lambda: model.write_bytes(to_archive({"weights": Payload(proof)})), "refused"),
        (lambda: torch.save({"weights": Payload(proof)}, model), "not a whole checkpoint"),
        (lambda: model.write_bytes(pickle.dumps(Payload(proof))), "not a whole checkpoint"),
    ):
        write()
        more = [tmp_path / "x.png"] if command == "predict" else []
        code, _, error = run_cli(command, model, *more)
        assert code == 2
        assert words in error
        assert "Traceback" not in error
    assert not proof.exists()


def test_damaged_sets_leave_no_run_behind(run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9]))
    for word in ("not an idx file", "missing"):
        code, _, error = run_cli(
            "train", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "run"
        )
        assert code == 2
        assert word in error
        assert not (tmp_path / "run").exists()
        header = np.array([0x803, 2, 28, 28], ">u4").tobytes()
        (tmp_path / "train-images-idx3-ubyte").write_bytes(header + bytes(2 * 28 * 28))


def test_places_that_cannot_be_written_are_named_before_the_work(
    run_cli: Run,
    logged: tuple[Path, subprocess.CompletedProcess[bytes]],
    pets: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("mine")
    for bad in (Path("/proc/nowhere"), tmp_path / "file", tmp_path / "file" / "below"):
        for command in (
            ("train", pets, "--out", bad, *QUICK),
            ("evaluate", logged[0], "--report", bad),
            ("inspect", pets, "--report", bad, "--quiet"),
            ("predict", logged[0], pets, "--csv", bad / "x.csv"),
            ("compare", logged[0], logged[0], "--report", bad),
            ("find-lr", pets, "--out", bad, *QUICK),
        ):
            code, out, error = run_cli(*command)
            assert code == 2, command
            assert str(bad) in error
            assert "cannot be written" in error, error
            assert "accuracy" not in out
    assert (tmp_path / "file").read_text() == "mine"


def test_a_suggested_rate_is_told_even_if_its_curve_cannot_be_drawn(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mobilenetv2.training.find_lr import RangeTest

    def full(*_: Any) -> None:
        raise WorkFailed("find-lr.png: cannot be written (No space left on device)")

    test = RangeTest([0.1, 0.2], [2.0, 1.0], [2.0, 1.0], 0.05, "it falls")
    monkeypatch.setattr("mobilenetv2.training.train.run_range_test", lambda *_: test)
    monkeypatch.setattr("mobilenetv2.evaluation.plots.save", full)
    code, out, error = run_cli("find-lr", "--out", tmp_path)
    assert code == 1
    assert out.startswith("suggested learning rate: 0.05\n")
    assert "No space left" in error


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["evalute", "x"], "evaluate"),
        (["find_lr"], "find-lr"),
        (["Train"], "train"),
        (["train", "fashion_mnist"], "fashion-mnist"),
        (["train", "cifar-10"], "cifar10"),
        (["train", "--label-smooting", "0"], "--label-smoothing"),
        (["train", "--optimiser", "adam"], "--optimizer"),
    ],
)
def test_slips_of_the_pen_get_a_suggestion(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], near: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = run_cli(*words)
    assert code == 2
    assert near in error
    assert list(tmp_path.iterdir()) == []
