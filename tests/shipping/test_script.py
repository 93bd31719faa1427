"""The short scripts of the documentation: bare runtimes that give `predict`'s answers."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mobilenetv2
from mobilenetv2.classifier import Classifier

RunCli = Callable[..., tuple[int, str, str]]
Answer = tuple[str, str, float]

DOCS = Path(__file__).parents[2] / "docs"
ANY = [(50, 50), (61, 83), (300, 90), (20, 31), (97, 60)]
FITTING = [(58, 50), (87, 75), (290, 250), (58, 50)]
"""Shaped as the file takes them; of others, the script for LiteRT takes a middle that lies a
fraction of a pixel elsewhere."""


def run_script(library: str, longest: int, folder: Path, files: list[Path]) -> list[Answer]:
    """Each file, its label and the probability, from the script for a library, run in a folder."""
    text = (DOCS / "shipping.md").read_text("utf-8")
    scripts = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.M)
    (script,) = (one for one in scripts if library in one)
    assert len(script.splitlines()) <= longest
    assert "mobilenetv2" not in script
    (folder / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py", *map(str, files)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [re.fullmatch(r"(.*): (.*) ([\d.]+)", line) for line in done.stdout.splitlines()]
    return [(match[1], match[2], float(match[3])) for match in lines if match]


def draw(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    """A picture of each height and width; some lie on their side, some are JPEGs."""
    random = np.random.default_rng(0)
    files = []
    for number, (height, width) in enumerate(sizes):
        coarse = random.integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height))
        exif = picture.getexif()
        exif[0x0112] = 1 + number  # some lie on their side
        files.append(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
        picture.save(files[-1], exif=exif)
    return files


def with_opinions(model: Path, files: list[Path]) -> Path:
    """The model with norms that have seen these pictures, so that their answers differ."""
    classifier = mobilenetv2.load(model)
    network = classifier.network.train()
    prepared = [classifier.prepare(file) for file in files]
    with torch.no_grad():
        for _ in range(50):  # the norms' statistics are moving averages
            network(classifier.normalize(torch.stack(prepared)))
    network.eval()
    path = model.with_name("opinions.safetensors")
    classifier.save(path)
    return path


def as_predicted(classifier: Classifier, files: list[Path]) -> list[Answer]:
    best = [one[0] for one in classifier.predict(files, top=1)]
    return [
        (str(file), one.label, round(one.probability, 4))
        for file, one in zip(files, best, strict=True)
    ]


def compare(found: list[Answer], expected: list[Answer]) -> None:
    """Printed with four digits."""
    for one, wanted in zip(found, expected, strict=True):
        assert one[:2] == wanted[:2]
        assert one[2] == pytest.approx(wanted[2], abs=1.01e-4)


@pytest.mark.parametrize(
    ("library", "longest", "needs", "format", "file", "sizes"),
    [
        ("onnxruntime", 15, ("onnx",), "onnx", "runs/digits/model.onnx", ANY),
        ("ai_edge_litert", 20, ("litert_torch",), "litert", "runs/photos/model.tflite", FITTING),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the converters' own
def test_the_script_answers_as_predict(
    library: str,
    longest: int,
    needs: tuple[str, ...],
    format: str,
    file: str,
    sizes: list[tuple[int, int]],
    photos_model: Path,
    tmp_path: Path,
    run_cli: RunCli,
    picture_folder: Callable[..., Path],
) -> None:
    for package in (library, *needs):
        pytest.importorskip(package)
    files = draw(tmp_path, sizes)
    model = with_opinions(photos_model, files)
    out = tmp_path / file
    out.parent.mkdir(parents=True)
    code, _, error = run_cli(
        "export", model, "--format", format, "--verify", picture_folder(), "--out", out
    )
    assert code == 0, error
    expected = as_predicted(mobilenetv2.load(model), files)
    assert len({one[2] for one in expected}) > 2  # or any script would do
    compare(run_script(library, longest, tmp_path, files), expected)
