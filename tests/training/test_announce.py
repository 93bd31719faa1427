"""What a run says before its first step."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("undrawn")
def test_errors_of_the_doctor_are_named_by_kind(
    run_cli: Run, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    pictures = picture_folder()
    folder = tmp_path / "divided"
    shutil.copytree(pictures, folder / "train")
    for name in ("dark", "light"):
        (folder / "val" / name).mkdir(parents=True)
        for number in range(6):
            shutil.copy(pictures / name / f"{number}.png", folder / "val" / name)
    shutil.copy(pictures / "dark" / "0.png", folder / "val" / "stray.png")
    few = ("--epochs", "1", "--warmup-epochs", "0", "--width", "0.1", "--fast-ops", "off",
           "--image-size", "24", "32", "--train-size", "18")  # fmt: skip
    code, out, _ = run_cli("train", folder, "--out", tmp_path / "run", *few)
    assert code == 0
    words = " ".join(out.split())
    assert "errors among them: 12 × Leak between splits (the score would flatter" in words
    assert "24×32 rgb, in training 18×24" in words
    assert "1 picture in no class, and not used: " in words
    assert "stray.png" in words
    error = " ".join(run_cli("evaluate", tmp_path / "run")[2].split())
    assert "1 picture in no class, and not used: " in error
    assert "stray.png" in error


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--milestones", "0.5"), "--milestones are not used by --schedule cosine"),
        (
            ("--gamma", "0.5", "--schedule", "constant"),
            "--gamma is not used by --schedule constant",
        ),
        (("--schedule", "multistep", "--milestones", "0.5", "7"), "before the end: 7"),
        (("--schedule", "multistep", "--milestones", "0.5", "--gamma", "0.5"), ""),
        (("--schedule", "exponential", "--gamma", "0.5"), ""),
    ],
)
def test_settings_that_change_nothing_are_named(
    run_cli: Run, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    few = ("--epochs", "1", "--warmup-epochs", "0", "--width", "0.1", "--fast-ops", "off",
           "--batch-size", "512")  # fmt: skip
    code, out, _ = run_cli("train", "--out", tmp_path / "run", *few, *flags)
    assert code == 0
    assert words in out
    assert ("not used" in out or "before the end" in out) == bool(words)
    assert "1 epoch of 3 steps" in out
