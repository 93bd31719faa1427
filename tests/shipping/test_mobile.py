"""Files for phones, where their libraries are installed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mobilenetv2
from mobilenetv2.shipping.export import FORMATS
from mobilenetv2.shipping.formats import Content, picture_size
from mobilenetv2.shipping.held_out import held_out
from mobilenetv2.shipping.mobile_file import description

RunCli = Callable[..., tuple[int, str, str]]


def need(form: str) -> None:
    for library in FORMATS[form].libraries:
        pytest.importorskip(library)


@pytest.mark.parametrize("size", [(), (60, 70)])
@pytest.mark.parametrize("form", ["litert", "executorch"])
@pytest.mark.filterwarnings("ignore")  # the converters' own
def test_one_picture_of_one_size(
    form: str,
    size: tuple[int, ...],
    photos_model: Path,
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    run_cli: RunCli,
) -> None:
    need(form)
    folder = picture_folder(size=(61, 83), count=3)
    out = tmp_path / f"photos{FORMATS[form].suffix}"
    flags = ("--picture-size", *size) if size else ()
    code, _, error = run_cli(
        "export", photos_model, "--format", form, "--verify", folder, "--out", out, *flags
    )
    assert code == 0, error
    classifier = mobilenetv2.load(photos_model)
    expected_size = size or (58, 50)  # 48 × 40 with what resizing to 50 leaves around it
    assert picture_size(Content(classifier, picture_size=size or None)) == expected_size
    pixels = np.random.default_rng(0).integers(0, 256, (*expected_size, 3), dtype=np.uint8)
    logits = FORMATS[form].open(out)(pixels[None])["logits"]
    expected = classifier.logits(classifier.prepare(pixels)[None]).numpy()
    assert np.abs(logits - expected).max() < 1e-4
    texts = description(out)
    assert json.loads(texts["labels"]) == ["dark", "light"]
    assert f"1×{expected_size[0]}×{expected_size[1]}×3" in texts["input"]
    certificate = json.loads(out.with_name(out.name + ".certificate.json").read_text())
    assert certificate["comparison"]["agreement"] == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("onnx",), "--format onnx takes pictures of any size"),
        (("openvino", "--int8"), "--format openvino takes pictures of any size"),
        (("torch",), "--format torch takes pictures of any size"),
        (("litert", "--raw"), "the network alone (raw)"),
    ],
)
def test_a_picture_size_where_there_is_none(
    flags: tuple[str, ...], words: str, run_cli: RunCli
) -> None:
    """It is refused before any work, even before the model is looked for."""
    code, _, error = run_cli("export", "no-model", "--picture-size", 8, 8, "--format", *flags)
    assert code == 2
    assert words in " ".join(error.split())


def test_fitted_pictures_are_what_predict_sees(
    photos_model: Path, picture_folder: Callable[..., Path]
) -> None:
    """Brought to the size that resizing leaves, a picture is prepared as if it came from a file."""
    folder = picture_folder(size=(61, 83), count=3)
    Image.new("RGB", (40, 200), "red").save(folder / "dark" / "tall.png")
    classifier = mobilenetv2.load(photos_model)
    found = held_out(classifier, photos_model, str(folder), None)
    size = picture_size(Content(classifier))
    fitted = found.fitted(classifier, size, classifier.preprocessing.resize)
    assert isinstance(fitted.originals, np.ndarray)
    assert fitted.originals.shape == (7, *size, 3)
    assert torch.equal(fitted.prepared.pictures, found.prepared.pictures)
