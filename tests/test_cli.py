"""The command line: help, precedence, and clear words for what cannot be done."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.cli import COMMANDS, main
from mobilenetv2.cli.runtime import in_runtime
from mobilenetv2.cli.voice import complain
from mobilenetv2.evaluation import curves
from mobilenetv2.printable import printable
from mobilenetv2.runtimes.engine import Engine
from mobilenetv2.terminal import print_evaluation

Run = Callable[..., tuple[int, str, str]]
QUICK = (
    "--width", "0.1", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "512",
    "--fast-ops", "off",
)  # fmt: skip


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    settings: dict[str, Any] = {
        "width": 0.1, "epochs": 1, "warmup_epochs": 0, "batch_size": 512, "fast_ops": "off",
    }  # fmt: skip
    mobilenetv2.train(mobilenetv2.configure("digits", out=out, **settings))
    return out


def test_help_names_every_command_and_needs_no_pytorch(run_cli: Run) -> None:
    code, out, _ = run_cli("--help")
    assert code == 0
    for name in ("train", "evaluate", "predict", "compare", "find-lr", "inspect"):
        assert name in COMMANDS
        assert f"  {name} " in out
    assert run_cli()[0] == 0
    assert run_cli("--version")[1].strip() == f"mobilenetv2 {mobilenetv2.__version__}"
    program = (
        "import sys; from mobilenetv2.cli import main\n"
        "try: main(['train', 'mnist', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "--label-smoothing" in output
    assert output.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run_cli: Run, name: str) -> None:
    code, out, _ = run_cli(name, "--help")
    assert code == 0
    assert f"mobilenetv2 {name}" in out


def test_help_shows_the_defaults_of_the_data(run_cli: Run) -> None:
    def default(*arguments: str) -> str:
        words = " ".join(run_cli("train", *arguments, "--help")[1].split())
        return words.split("--epochs INT")[1].split("default: ")[1].split(")")[0]

    assert default("digits") != default("cifar10")
    assert default("cifar10") == str(mobilenetv2.configure("cifar10").epochs)


def settings_of(run_cli: Run, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    seen: list[mobilenetv2.TrainConfig] = []

    def record(config: mobilenetv2.TrainConfig, _: Any) -> dict[str, Any]:
        seen.append(config)
        raise mobilenetv2.WorkFailed("enough")

    monkeypatch.setattr("mobilenetv2.training.train.train", record)
    code, _, error = run_cli("train", *arguments)
    assert (code, error.strip()) == (1, "mobilenetv2: enough")
    return seen[0]


def test_default_below_recipe_below_file_below_flag(
    run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("lr: 1e-3\nepochs: 7\nschedule:\n  schedule: constant\n")
    recipe = mobilenetv2.configure("mnist")
    config = settings_of(run_cli, monkeypatch, "mnist", "--config", file, "--epochs", "9")
    assert config.data.data == "mnist"
    assert config.epochs == 9
    assert config.optimizer.lr == 0.001
    assert config.schedule.schedule == "constant"
    assert config.network == recipe.network
    assert recipe.network.width == 0.5

    file.write_text("data: kmnist\nbatch-size: 33")
    config = settings_of(run_cli, monkeypatch, f"--config={file}")
    assert (config.data.data, config.batch_size) == ("kmnist", 33)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "no such command.*did you mean 'train'"),
        (["train", "minst"], "did you mean 'mnist'"),
        (["train", "no/such/folder"], "neither a folder nor a known data set"),
        (["train", "--lr", "-1"], "--lr: must be greater than 0, got -1"),
        (["train", "--lr", "nan"], "lr: "),
        (["train", "--epochs", "0"], "--epochs: must be greater than or equal to 1"),
        (["train", "--epochs", "-3"], r"epochs: must be greater than or equal to 1, got -3$"),
        (["train", "--batch_size=0"], "--batch-size: "),
        (["train", "--image-size", "8", "4097"], "image-size: must be less than .* 4096, got 4097"),
        (["train", "--width", "0"], "width: "),
        (["train", "--image-size", "4"], "--image-size: "),
        (["train", "--val-fraction", "1.5"], "--val-fraction: "),
        (["train", "--warmup-epochs", "99"], "warmup_epochs .99. must be less than epochs"),
        (["train", "--momentum", "0"], "nesterov needs momentum"),
        (["train", "--device", "cuda:9"], "--device cuda:9: not available"),
        (["train", "--device", "meta"], "--device meta: not available"),
        (["train", "--lrr", "1"], "(?s)Unrecognized options.*--lr"),
        (["train", "--optimizer", "sdg"], "--optimizer: 'sgd', .* is expected, not 'sdg'"),
        (["train", "--optimizer", "a---b"], "is expected, not 'a---b'"),
        (["train", "--keep"], "--keep needs a value"),
        (["train", "--image-size"], "--image-size needs a value"),
        (["inspect", "--image-size", "28", "30", "31"], "--image-size: a whole number or two is"),
        (["export", "run", "--picture-size", "28"], "two whole numbers is expected, not '28'"),
        (["train", "--epochs", "many"], "(?s)epochs"),
        (["train", "--config"], "--config needs a value"),
        (["train", "--config", "missing.yaml"], "missing.yaml: cannot be read"),
        (["train", "--resume", "missing"], "not a run folder"),
        (["train", "--weights", "missing.pth"], "missing.pth"),
        (["train", "--weights", "imagenet", "--network", "first-version"], "there are none for"),
        (["train", "--out", "/proc/nowhere/run"], "--out /proc/nowhere/run: cannot be written"),
        (["evaluate", "missing"], "no such run folder or model file"),
        (["evaluate", "missing.safetensors"], "no such run folder or model file"),
        (["predict", "missing", "missing.png"], "missing.png"),
        (["predict"], "required"),
        (["predict", "run", "a.png", "--jsonl", "-"], "the output is called /dev/stdout"),
        (["inspect", "missing"], "missing: there is no run folder, model file or folder of pict"),
        (["inspect", "first-versoin"], "did you mean 'first-version'"),
        (["train", "--device", "gpu"], "--device gpu: not available here .devices are cpu, cuda"),
        (["train", "--tune", "99"], "--tune: must be less than or equal to 18, got 99"),
        (["find-lr", "--epochs", "0"], "epochs: "),
    ],
)
def test_wrong_input_gets_words_and_exit_code_two(
    run_cli: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    code, _, error = run_cli(*arguments)
    assert code == 2
    assert re.search(words, error), error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [["inspect"], ["train"], ["evaluate"], ["demo"], ["predict", "run"]]
)
def test_a_name_that_is_too_long(run_cli: Run, command: list[str], tmp_path: Path) -> None:
    name = tmp_path / ("x" * 300)
    code, _, error = run_cli(*command, name)
    assert code == 2
    assert "x" * 300 in error
    assert "File name too long" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize(
    ("command", "redirected", "expected"), [("--help", "> /dev/full", 1), ("inspect", ">&-", 0)]
)
def test_output_that_cannot_be_written(command: str, redirected: str, expected: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m mobilenetv2 {command} {redirected}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expected
    assert len(done.stderr.splitlines()) == expected
    assert ("No space left on device" in done.stderr) == bool(expected)


def test_wrong_folders_get_words(run_cli: Run, tmp_path: Path, picture_folder: Any) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    lonely = picture_folder(classes=("only",), name="lonely")
    broken = picture_folder(name="broken", count=2)
    for path in broken.glob("dark/*"):
        path.write_bytes(b"no picture")
    differing = tmp_path / "differing"
    for split, label in (("train", "dark"), ("train", "light"), ("val", "dark"), ("val", "new")):
        (differing / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(differing / split / label / "x.png")
    for folder, word in (
        (empty, "empty"),
        (lonely, "only"),
        (broken, "dark"),
        (differing, "lacks class"),
    ):
        code, _, error = run_cli("train", folder, "--out", tmp_path / "run", *QUICK)
        assert code == 2
        assert word in error
        assert "Traceback" not in error
        assert not (tmp_path / "run").exists()


def test_yaml_mistakes_name_file_and_key(run_cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    for text, words in (("lrr: 1", "did you mean 'lr'"), ("lr: [", "not valid YAML")):
        file.write_text(text)
        code, _, error = run_cli("train", "--config", file)
        assert code == 2
        assert words in error
        assert str(file) in error


@pytest.mark.usefixtures("undrawn")
def test_a_run_is_never_overwritten_unless_asked(
    run_cli: Run, tmp_path: Path, picture_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = (picture_folder(name="few"), "--val-fraction", "0.3", *QUICK)
    for _ in range(2):
        code, out, _ = run_cli("train", "--quiet", *few)
        assert code == 0
        assert len(out.strip().splitlines()) == 1
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"few", "few-2"}
    first = (tmp_path / "runs" / "few" / "result.json").read_text()
    code, _, error = run_cli("train", "--out", "runs/few", *few)
    assert code == 2
    assert "--overwrite" in error
    assert (tmp_path / "runs" / "few" / "result.json").read_text() == first
    code, *_ = run_cli("train", "--out", "runs/few", "--overwrite", "--seed", "5", *few)
    assert code == 0
    assert json.loads((tmp_path / "runs" / "few" / "result.json").read_text())["seed"] == 5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    code, _, error = run_cli("train", "--out", "mine", "--overwrite", *few)
    assert code == 2
    assert "thesis.txt" in error


def test_evaluate_other_data(run_cli: Run, run_folder: Path, picture_folder: Any) -> None:
    code, out, _ = run_cli("evaluate", run_folder / "model.safetensors", "digits", "--quiet")
    assert code == 0
    assert out.startswith("test: accuracy")
    folder = picture_folder(classes=("3", "7"), mode="L", size=(8, 8))
    code, out, error = run_cli("evaluate", run_folder, folder)
    assert code == 0
    assert "24 pictures" in out
    assert error == ""
    code, _, error = run_cli("evaluate", run_folder, picture_folder(name="others"))
    assert code == 2
    assert "does not know the class 'dark'" in error


def test_a_folder_of_one_class_can_be_measured_and_not_trained_on(
    run_cli: Run, run_folder: Path, picture_folder: Any
) -> None:
    folder = picture_folder(classes=("7",), mode="L", size=(8, 8))
    code, out, _ = run_cli("evaluate", run_folder, folder, "--quiet")
    assert code == 0
    assert "12 pictures" in out
    for command in ("train", "inspect"):
        code, _, error = run_cli(command, folder)
        assert code == 2
        assert "one class only, '7'" in error


def test_a_strangers_labels_do_not_command_the_terminal(
    run_cli: Run, run_folder: Path, tmp_path: Path
) -> None:
    """They may come with a file from anywhere; those of a table stay as they are."""
    classifier = mobilenetv2.load(run_folder)
    evil = tuple(f"\x1b[2J{number}\r\n狗" for number in range(10))
    training = {"by": "\x1b]0;owned\x07"}
    stranger = dataclasses.replace(classifier, labels=evil, training=training)
    stranger.save(tmp_path / "stranger.safetensors")
    picture = write_digit(tmp_path / "a\x1b[31m.png")
    broken = tmp_path / "\x1b[5m.png"
    broken.write_bytes(b"x")
    code, out, error = run_cli("predict", tmp_path / "stranger.safetensors", picture, broken)
    assert code == 1
    assert r"a\x1b[31m.png" in out
    assert r"\r\n狗" in out
    assert len(out.splitlines()) == 1
    assert r"\x1b[5m.png" in error
    shown = run_cli("inspect", tmp_path / "stranger.safetensors")[1]
    assert r"by: \x1b]0;owned\x07" in shown
    assert "\x1b" not in out + error + shown
    table = tmp_path / "out.jsonl"
    run_cli("predict", tmp_path / "stranger.safetensors", picture, "--jsonl", table)
    assert json.loads(table.read_text())["predictions"][0]["label"] in evil


@pytest.mark.parametrize("name", ["9.41.00\u202fAM", "猫\u3000狗", "می\u200cخواهم", "👩\u200d🔬"])
def test_names_of_every_language_stay_as_they_are(name: str) -> None:
    assert printable(name) == name


def test_of_many_processes_one_says_what_runs_a_classifier(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = mobilenetv2.load(run_folder)
    engine = Engine.__new__(Engine)  # the library itself may be missing
    engine.runtime = "onnxruntime"
    classifier = dataclasses.replace(classifier, engine=engine)
    monkeypatch.setattr("mobilenetv2.runtimes.memory.fastest", lambda *_: classifier)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, says in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        in_runtime(classifier, "auto", 100, quiet=False)
        assert ("run by onnxruntime" in capsys.readouterr().err) == says


def test_who_watches_is_told_what_there_is_to_wait_for(
    run_folder: Path, picture_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = picture_folder(classes=("3", "7"), mode="L", size=(8, 8))
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    for flags in (["--quiet"], []):
        assert terminal.getvalue() == ""
        # So that it has to be examined again.
        Image.new("L", (8, 8), len(flags)).save(folder / "3" / f"another{len(flags)}.png")
        with pytest.raises(SystemExit):
            main(["evaluate", str(run_folder), str(folder), *flags])
    assert f"examining the pictures in {folder}" in terminal.getvalue()


@pytest.mark.usefixtures("undrawn")
def test_evaluating_a_run_tells_that_its_pictures_changed(
    run_cli: Run, tmp_path: Path, picture_folder: Any
) -> None:
    folder, run = picture_folder(), tmp_path / "run"
    assert (
        run_cli("train", folder, "--out", run, "--quiet", *QUICK, "--val-fraction", "0.3")[0] == 0
    )
    code, out, error = run_cli("evaluate", run)
    assert (code, error) == (0, "")
    assert out.startswith("validation: accuracy")
    for path in sorted(folder.glob("dark/*"))[:6]:
        path.write_bytes(b"no picture")
    code, _, error = run_cli("evaluate", run)
    assert code == 0
    words = " ".join(error.split())
    assert "6 of its pictures cannot be read, so no figure counts them" in words
    assert "no longer holds the pictures that" in words
    (run / "result.json").write_text("[]")
    assert "no longer" not in run_cli("evaluate", run)[2]


def test_a_model_alone_does_not_know_its_data(
    run_cli: Run, tmp_path: Path, small_classifier: Classifier
) -> None:
    small_classifier.save(tmp_path / "m.safetensors")
    code, _, error = run_cli("evaluate", tmp_path / "m.safetensors")
    assert code == 2
    assert "name the data" in error


def write_digit(path: Path, value: int = 128) -> Path:
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path)
    return path


def test_predict_prints_labels_with_probabilities(
    run_cli: Run, run_folder: Path, tmp_path: Path
) -> None:
    picture = write_digit(tmp_path / "Ziffer drei.png")
    code, out, _ = run_cli("predict", run_folder, picture, "--top", "99")
    assert code == 0
    assert out.startswith(f"{picture}: ")
    assert out.count("%") == 10
    (tmp_path / "broken.png").write_bytes(b"x")
    code, out, error = run_cli("predict", run_folder, tmp_path)
    assert code == 1
    assert str(picture) in out
    assert "broken.png" in error


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_predict_into_a_file_goes_on_where_it_stopped(
    run_cli: Run, run_folder: Path, tmp_path: Path, kind: str
) -> None:
    album = tmp_path / "album"
    album.mkdir()
    for number in range(70):
        write_digit(album / f"{number:02}, {'ü' * (number % 3)}.png", number * 3)
    (album / "05x.png").write_bytes(b"broken")
    target = tmp_path / f"out.{kind}"
    code, out, _ = run_cli("predict", run_folder, album, f"--{kind}", target, "--top", "2")
    assert code == 0
    assert "71 pictures, 1 unreadable" in out
    whole = target.read_text()
    # As if the call had been killed in the middle of a line.
    target.write_text(whole[: len(whole) // 2])
    code, out, _ = run_cli("predict", run_folder, album, f"--{kind}", target, "--top", "2")
    assert code == 0
    assert "from an earlier call" in out
    # Other pictures share a batch now, and are summed in another order: the last digits differ.
    number = re.compile(r"\d+\.\d+(?:e-?\d+)?")
    again = target.read_text()
    assert number.sub("#", again) == number.sub("#", whole)
    assert [*map(float, number.findall(again))] == pytest.approx(
        [*map(float, number.findall(whole))], rel=1e-5, abs=1e-6
    )
    if kind == "csv":
        rows = list(csv.DictReader(whole.splitlines()))
        assert [row["path"] for row in rows] == sorted(str(path) for path in album.iterdir())
        assert rows[6]["error"]
        probabilities = [float(row["probability_1"]) for row in rows if not row["error"]]
        assert all(0.1 <= value <= 1 for value in probabilities)
    else:
        first = json.loads(whole.splitlines()[0])
        assert len(first["predictions"]) == 2
    other = mobilenetv2.load(run_folder)
    with torch.no_grad():
        next(reversed(list(other.network.parameters()))).neg_().add_(3.0 * torch.arange(10))
    other.save(tmp_path / "other.safetensors")
    code, _, error = run_cli(
        "predict", tmp_path / "other.safetensors", album, f"--{kind}", target, "--top", "2"
    )
    assert code == 2
    assert "holds predictions of another classifier" in error
    assert target.read_text() == again
    target.write_text("something else\n")
    code, *_ = run_cli("predict", run_folder, album, f"--{kind}", target, "--top", "2")
    assert code == 2
    assert target.read_text() == "something else\n"


@pytest.mark.parametrize("flag", ["--csv", "--jsonl"])
def test_a_table_goes_on_only_with_the_pictures_it_was_begun_with(
    run_cli: Run, run_folder: Path, tmp_path: Path, flag: str
) -> None:
    folder, table = tmp_path / "album", tmp_path / "table"
    folder.mkdir()
    for number in range(40):
        write_digit(folder / f"{number:02}.png", number * 3)
    assert run_cli("predict", run_folder, folder, flag, table)[0] == 0
    before = table.read_bytes()
    assert "40 from an earlier call" in run_cli("predict", run_folder, folder, flag, table)[1]

    ahead = time.time() + 3600  # as a camera's clock may be
    os.utime(folder / "08.png", (ahead, ahead))
    assert run_cli("predict", run_folder, folder, flag, table)[0] == 0
    earlier = time.time() - 60
    os.utime(table, (earlier, earlier))
    code, _, error = run_cli("predict", run_folder, folder, flag, table)
    assert code == 2
    assert "holds what was said of" in error
    assert "before that file changed" in error
    assert table.read_bytes() == before


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_what_an_earlier_call_wrote_is_counted_right(
    run_cli: Run, run_folder: Path, tmp_path: Path, kind: str
) -> None:
    first, second = write_digit(tmp_path / "1.png"), write_digit(tmp_path / "2.png", 99)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"x")
    into = (f"--{kind}", tmp_path / f"out.{kind}")
    assert run_cli("predict", run_folder, first, broken, *into)[0] == 0
    code, out, _ = run_cli("predict", run_folder, second, broken, *into)
    assert code == 0
    assert "2 pictures, 1 unreadable, 1 from an earlier call: " in out
    assert "1 could not be read in an earlier call; to try again, remove the line" in out
    _, out, _ = run_cli("predict", run_folder, second, *into)
    assert "1 pictures, 0 unreadable, 1 from an earlier call: " in out
    code, _, error = run_cli("predict", run_folder, second, *into, "--top", "2")
    assert code == 2
    assert "--top" in error


@pytest.mark.slow
def test_predictions_into_a_pipe(run_folder: Path, tmp_path: Path) -> None:
    picture = write_digit(tmp_path / "1.png")
    done = subprocess.run(
        [
            sys.executable, "-m", "mobilenetv2", "predict", run_folder, picture,
            "--csv", "/dev/stdout",
        ],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert [row["path"] for row in csv.DictReader(done.stdout.splitlines())] == [str(picture)]
    assert "1 pictures, 0 unreadable" in done.stderr


def test_odd_class_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = [":cat:", "a\\", "[red]b", "new\nline"]
    row = {"pictures": 3, "predicted": 3, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    summary = {
        "accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "loss": 1.0, "macro_f1": 0.5,
        "pictures": 12, "classes": [row | {"class": name} for name in names],
    }  # fmt: skip
    print_evaluation("test", summary, quiet=False)
    printed = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in printed] == [":cat:", "a\\", "[red]b", r"new\nline"]
    unseen = row | {"class": "unseen", "pictures": 0, "predicted": 0}
    print_evaluation("test", summary | {"classes": [unseen]}, quiet=False)
    assert capsys.readouterr().out.split()[-4:] == ["0", "–", "–", "–"]
    complain(":cat: is missing")
    assert ":cat: is missing" in capsys.readouterr().err


def test_inspect_shows_plan_costs_and_health(
    run_cli: Run, run_folder: Path, picture_folder: Any, tmp_path: Path
) -> None:
    code, out, _ = run_cli("inspect")
    assert code == 0
    assert "3,504,872 parameters, 300.77 M multiply-adds" in out
    code, out, _ = run_cli("inspect", "--image-size", "32", "--width", "0.5")
    assert "2·1·2·2·1·1·1·1; last map 4×4" in out
    assert "3×32×64" in run_cli("inspect", "--image-size", "32", "64", "--width", "0.1")[1]
    code, out, _ = run_cli(
        "inspect", "first-version", "--image-size", "28", "--classes", "10", "--channels", "1"
    )
    assert "801,210 parameters, 27.68 M multiply-adds" in out
    before = ("--channels", "1", "--image-size", "28", "first-version", "--classes", "10")
    assert run_cli("inspect", *before)[1] == out
    small = ("--image-size", "28", "--classes", "10", "--channels", "1")
    assert "801,210 parameters" in run_cli("inspect", "--network", "first-version", *small)[1]
    code, out, _ = run_cli("inspect", run_folder)
    assert "10 classes: 0, 1, 2" in out

    folder = picture_folder()
    (folder / "dark" / "bad.png").write_bytes(b"x")
    code, out, _ = run_cli("inspect", folder, "--report", tmp_path / "report")
    assert code == 0
    assert "bad.png" in out
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"doctor.json", "doctor.png"}
    assert run_cli("inspect", folder, "--strict", "--quiet")[0] == 1


@pytest.mark.parametrize(
    ("thing", "flags", "words"),
    [
        ("mobilenetv2", "--network first-version", "--network first-version: mobilenetv2 is to be"),
        ("mobilenetv2", "--strict", "--strict: not used, as mobilenetv2 is a network"),
        (None, "--report x", "--report: not used, as mobilenetv2 is a network"),
        ("pictures", "--classes 3 --width 0.5", "--classes, --width: not used, as"),
        ("run", "--report x --strict", "--strict, --report: not used, as"),
        ("run", "--image-size 32", "--image-size: not used, as"),
        ("run", "--channels 1", "--channels: not used, as"),
    ],
)
def test_inspect_refuses_flags_of_something_else(
    run_cli: Run, run_folder: Path, picture_folder: Any, thing: str | None, flags: str, words: str
) -> None:
    things = {"run": run_folder, "pictures": picture_folder(), None: ""}
    named = [str(things.get(thing, thing))] if thing else []
    code, out, error = run_cli("inspect", *named, *flags.split())
    assert (code, out) == (2, "")
    assert words in " ".join(error.split())


def test_runs_stand_beside_the_first(
    run_cli: Run, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # in a file, rows are as long as it takes
    changed = {"other": ("lr: 0.1", "lr: 0.25"), "seed": ("\nseed: 0", "\nseed: 7")}
    for name, words in changed.items():
        shutil.copytree(run_folder, tmp_path / name)
        settings = (run_folder / "config.yaml").read_text()
        assert words[0] in settings
        (tmp_path / name / "config.yaml").write_text(settings.replace(*words))
    (tmp_path / "find-lr.png").touch()
    report = tmp_path / "report"
    drawn: list[Any] = []
    draw = curves.comparison
    monkeypatch.setattr(curves, "comparison", lambda *given: drawn.extend(given) or draw(*given))
    others = (tmp_path / "other", tmp_path / "seed", tmp_path / "find-lr.png")
    code, out, error = run_cli("compare", run_folder, *others, "--report", report)
    assert code == 0
    accuracy = json.loads((run_folder / "result.json").read_text())["test_accuracy"]
    (row,) = (line for line in out.splitlines() if line.startswith(f"{run_folder} "))
    assert f" {accuracy:.2%} " in row
    assert f" {json.loads((run_folder / 'result.json').read_text())['macro_f1']:.4f} " in row
    assert f"\n  {others[0]}: --lr 0.25\n  {others[1]}: --seed 7\n" in out
    (row,) = (line for line in out.splitlines() if line.startswith(f"{run_folder}, {others[1]} "))
    assert f" {accuracy:.2%} ± 0.00%" in row
    assert f"left out: {others[2]}: not a run folder" in error
    shutil.copytree(run_folder, tmp_path / "again")
    again = run_cli("compare", run_folder, others[1], tmp_path / "again")[2]
    assert f"{tmp_path / 'again'}: not in the mean, as {run_folder} has the same seed" in again
    written = json.loads((report / "comparison.json").read_text())
    assert [one["other_settings"] for one in written["runs"]] == [{}, {"lr": 0.25}, {"seed": 7}]
    assert written["seeds"][0]["test_accuracy"] == {"mean": accuracy, "standard_deviation": 0.0}
    assert drawn[1] == [[str(run_folder), str(others[1])]]
    with Image.open(report / "comparison.png") as picture:
        picture.verify()
    code, out, _ = run_cli("compare", f"{tmp_path}/[os]*e[dr]")  # as where no shell expands it
    assert code == 0
    assert f"\n  {others[1]}: --lr 0.1 --seed 7\n" in out
    (others[0] / "result.json").write_text("{}")
    code, _, error = run_cli("compare", run_folder, f"{run_folder}/", tmp_path, others[0])
    assert code == 2
    assert f"left out: {others[0] / 'result.json'}: cannot be read" in error
    assert "compare: 1 to compare; name the folders of two runs or more" in error
    code, out, error = run_cli("compare", run_folder, others[1], "--report", others[2])
    assert (code, out) == (2, "")
    assert f"--report {others[2]}: cannot be written (it is a file; name a folder)" in error


def test_runs_on_other_pictures_are_told_apart(
    run_cli: Run, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shutil.copytree(run_folder, tmp_path / "cut")
    (tmp_path / "cut" / "result.json").unlink()
    settings = tmp_path / "cut" / "config.yaml"
    settings.write_text(settings.read_text().replace("split_seed: 0", "split_seed: 1"))
    code, out, error = run_cli("compare", run_folder, tmp_path / "cut")
    assert code == 0
    (row,) = (line for line in out.splitlines() if line.startswith(f"{tmp_path / 'cut'} "))
    assert re.search(r"% +– +– +– +1 of 1 ", row)
    assert f"the validation figures of {tmp_path / 'cut'} are of other pictures" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "digits", "--lr", "abc"), "--lr: a number or auto is expected, not 'abc'"),
        (
            ("train", "digits", "--image-size", "x", "8"),
            "--image-size: a whole number or two is expected, not 'x', '8'",
        ),
        (("train", "--epochs", "1.5"), "--epochs: a whole number is expected, not '1.5'"),
        (("find-lr", "--momentum", "x"), "--momentum: a number is expected, not 'x'"),
        (
            ("predict", "runs", "x.png", "--top", ""),
            "an empty word stands after --top",
        ),
        (("train", ""), "an empty word stands among the names"),
        (("train", "--config", ""), "an empty word stands after --config"),
        (("predict", "runs", "x.png", "--csv="), "an empty word stands at --csv"),
        (("train", "--strides", "1", "3"), "--strides: 8 × {1,2} is expected, not '1', '3'"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_without_pythons_types(
    run_cli: Run, arguments: tuple[str, ...], words: str
) -> None:
    code, _, error = run_cli(*arguments)
    assert (code, error.strip()) == (2, f"mobilenetv2: {words}")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_such_a_value_is_told_in_any_terminal(encoding: str) -> None:
    """Whose boxes are drawn with other characters, and in colours."""
    program = "import sys; from mobilenetv2.cli import main; main(['train', '--lr', 'abc'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "FORCE_COLOR": "1"},
    )
    told = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr).strip()
    assert (done.returncode, told) == (
        2, "mobilenetv2: --lr: a number or auto is expected, not 'abc'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "too little memory (MemoryError)"),
        (
            RuntimeError("DefaultCPUAllocator: not enough\nmore"),
            "(DefaultCPUAllocator: not enough)",
        ),
    ],
)
def test_too_little_memory_is_said_in_words(
    run_cli: Run, run_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("mobilenetv2.training.load.load", fail)
    code, _, told = run_cli("evaluate", run_folder)
    assert code == 1
    assert words in told
    assert "--batch-size" not in told  # which `evaluate` does not have
    monkeypatch.setattr("mobilenetv2.training.train.train", fail)
    code, _, told = run_cli("train", "digits")
    assert code == 1
    assert words in told
    assert "--batch-size" in told


@pytest.mark.slow
def test_find_lr_suggests_and_draws(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_cli("find-lr", "digits", *QUICK, "--batch-size", "32", "--image-size", "8")
    assert code == 0
    assert out.startswith("suggested learning rate: 0.")
    assert (tmp_path / "find-lr.png").exists()


def test_a_table_that_nobody_reads_on(
    run_cli: Run, run_folder: Path, picture_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of `predict --csv /dev/stdout | head`."""

    def broken(*_: Any) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("mobilenetv2.evaluation.prediction_table.append", broken)
    code, _, error = run_cli("predict", run_folder, picture_folder(), "--csv", "/dev/null")
    assert (code, error) == (0, "")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(run_folder: Path) -> None:
    command = f"{sys.executable} -m mobilenetv2 inspect | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk")
def test_a_table_that_the_disk_has_no_room_for(run_folder: Path) -> None:
    command = f"{sys.executable} -m mobilenetv2 inspect {run_folder} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_training_goes_on_where_nobody_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mobilenetv2", "train", "digits", *map(str, QUICK)]
    child = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.close()
    _, error = child.communicate(timeout=120)
    assert (child.returncode, error) == (0, b"")
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_labels_in_a_broken_encoding(
    run_cli: Run, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    label = os.fsdecode(b"K\xe4fer")
    folder = picture_folder(classes=("bee", label))
    assert run_cli("train", folder, *QUICK, "--quiet", "--out", tmp_path / "run")[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert [row["class"] for row in result["classes"]] == [label, "bee"]
    report = tmp_path / "report"
    assert run_cli("evaluate", tmp_path / "run", folder, "--report", report)[0] == 0
    measured = json.loads((report / "evaluation.json").read_text(encoding="utf-8"))
    assert [row["class"] for row in measured["all"]["classes"]] == [label, "bee"]
    for flag in ("--csv", "--jsonl"):
        table = tmp_path / f"table{flag}"
        assert run_cli("predict", tmp_path / "run", folder, flag, table)[0] == 0
        assert table.read_bytes().count(b"\n") == 24 + (flag == "--csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
@pytest.mark.parametrize("inside", ["", "photos"])
def test_a_folder_without_permission(run_cli: Run, tmp_path: Path, inside: str) -> None:
    locked = tmp_path / "locked"
    (locked / "photos").mkdir(parents=True)
    locked.chmod(0)
    try:
        for command in (["inspect"], ["train"], ["predict", tmp_path / "run"]):
            code, _, err = run_cli(*command, locked / inside)
            assert code == 2
            assert "Traceback" not in err
    finally:
        locked.chmod(0o755)
