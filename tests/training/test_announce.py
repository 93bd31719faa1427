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
    few = ("--epochs", "1", "--warmup-epochs", "0", "--width", "0.1", "--fast-ops", "off",
           "--image-size", "24", "32", "--train-size", "18")  # fmt: skip
    code, out, _ = run_cli("train", folder, "--out", tmp_path / "run", *few)
    assert code == 0
    words = " ".join(out.split())
    assert "errors among them: 12 × Leak between splits (the score would flatter" in words
    assert "24×32 rgb, in training 18×24" in words
