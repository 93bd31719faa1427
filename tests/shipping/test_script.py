"""The short script of the documentation: a bare runtime, no preparation, `predict`'s answers."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mobilenetv2
from mobilenetv2.classifier import Classifier

RunCli = Callable[..., tuple[int, str, str]]

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DOCS = Path(__file__).parents[2] / "docs"


def run_script(folder: Path, files: list[Path]) -> list[tuple[str, str, float]]:
    """Each file, its label and the probability, from the script in a folder with model.onnx."""
    text = (DOCS / "shipping.md").read_text("utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)
    assert len(script.splitlines()) <= 15
    assert "mobilenetv2" not in script
    (folder / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py", *map(str, files)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [re.fullmatch(r"(.*): (.*) ([\d.]+)", line) for line in done.stdout.splitlines()]
    return [(match[1], match[2], float(match[3])) for match in lines if match]


def as_predicted(classifier: Classifier, files: list[Path]) -> list[tuple[str, str, float]]:
    best = [one[0] for one in classifier.predict(files, top=1)]
    return [
        (str(file), one.label, round(one.probability, 4))
        for file, one in zip(files, best, strict=True)
    ]


def test_the_script_answers_as_predict(
    photos_model: Path, tmp_path: Path, run_cli: RunCli, picture_folder: Callable[..., Path]
) -> None:
    random = np.random.default_rng(0)
    files = []
    for number, (height, width) in enumerate([(50, 50), (61, 83), (300, 90), (20, 31), (97, 60)]):
        coarse = random.integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height))
        exif = picture.getexif()
        exif[0x0112] = 1 + number  # some lie on their side
        files.append(tmp_path / f"{number}.{'jpg' if number % 2 else 'png'}")
        picture.save(files[-1], exif=exif)
    code, _, error = run_cli(
        "export", photos_model, "--verify", picture_folder(), "--out", tmp_path / "model.onnx"
    )
    assert (code, error) == (0, "")
    expected = as_predicted(mobilenetv2.load(photos_model), files)
    for found, wanted in zip(run_script(tmp_path, files), expected, strict=True):
        assert found[:2] == wanted[:2]
        assert found[2] == pytest.approx(wanted[2], abs=1.01e-4)  # printed with four digits
