"""Exported files, each run by its own runtime without this package, beside `predict`."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilenetv2
from mobilenetv2.command_config import ExportConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.runtimes import installed
from mobilenetv2.runtimes.sessions import openvino_core
from mobilenetv2.shipping import onnx_contract
from mobilenetv2.shipping.export import FORMATS, size_of, target
from mobilenetv2.shipping.held_out import held_out
from mobilenetv2.shipping.web_export import page_folder

RunCli = Callable[..., tuple[int, str, str]]

NEEDED = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "torch": ()}
# Exporting and loading a program takes PyTorch seconds.
QUICK = ["onnx", "openvino", pytest.param("torch", marks=pytest.mark.slow)]


def need(form: str) -> None:
    for library in NEEDED[form]:
        pytest.importorskip(library)


def bare_run(path: Path, pixels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Probabilities and labels, with nothing but the runtime."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
        return session.run(["probabilities"], {"pictures": pixels})[0], labels
    if path.suffix == ".xml":
        core = openvino_core()
        model = core.read_model(path)
        labels = json.loads(model.get_rt_info("labels").astype(str))
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return compiled([pixels])["probabilities"], labels
    extra: dict[str, Any] = {"labels": ""}
    program = torch.export.load(str(path), extra_files=extra).module()
    return program(torch.from_numpy(pixels))[0].detach().numpy(), json.loads(extra["labels"])


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[pytest.mark.slow] * (form != "onnx")) for form in NEEDED]
)
def test_pictures_of_every_size_as_predict_answers(
    form: str,
    photos_model: Path,
    picture_folder: Callable[..., Path],
    tmp_path: Path,
    run_cli: RunCli,
) -> None:
    need(form)
    folder = picture_folder(size=(61, 83), count=4)
    tall = np.random.default_rng(0).integers(0, 256, (190, 44, 3), dtype=np.uint8)
    Image.fromarray(tall).save(folder / "dark" / "tall.png")
    out = tmp_path / f"photos{FORMATS[form].suffix}"
    code, printed, error = run_cli(
        "export", photos_model, "--format", form, "--verify", folder, "--out", out
    )
    assert (code, error) == (0, "")
    assert "same label" in printed
    assert printed.rstrip().endswith(str(out))
    classifier = mobilenetv2.load(photos_model)
    files = sorted(folder.rglob("*.png"))
    for file, predicted in zip(files, classifier.predict(files, top=2), strict=True):
        probabilities, labels = bare_run(out, np.array(Image.open(file).convert("RGB"))[None])
        assert labels == ["dark", "light"]
        for one in predicted:
            assert probabilities[0][labels.index(one.label)] == pytest.approx(
                one.probability, abs=1e-5
            )
    batch = np.stack([tall] * 3)
    assert bare_run(out, batch)[0].shape == (3, 2)

    certificate = json.loads(out.with_name(out.name + ".certificate.json").read_text())
    assert certificate["passed"]
    assert certificate["comparison"]["pictures"] == 9
    assert certificate["comparison"]["agreement"] == 1
    assert certificate["comparison"]["largest_difference"] <= 1e-4
    assert certificate["size"] >= out.stat().st_size
    assert not list(tmp_path.glob(".export-*"))


@pytest.mark.parametrize("form", QUICK)
def test_a_grey_classifier_on_a_named_set(
    form: str, digits_model: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    need(form)
    code, _, error = run_cli(
        "export", digits_model, "--format", form, "--verify", "digits", "--out", tmp_path, "--quiet"
    )
    assert (code, error) == (0, "")
    certificate = json.loads(
        (tmp_path / f"digits{FORMATS[form].suffix}.certificate.json").read_text()
    )
    assert certificate["comparison"]["pictures"] == 359
    assert certificate["comparison"]["largest_difference"] <= 1e-4
    assert certificate["data"] == "digits, test set"


def test_a_grey_classifier_on_colour_jpegs(digits_model: Path, tmp_path: Path) -> None:
    """A file gets RGB pixels, whose brightness is not to the last step that in the JPEG."""
    random = np.random.default_rng(0)
    for label in "01":
        (tmp_path / "jpegs" / label).mkdir(parents=True)
        for number in range(4):
            pixels = 255 * random.integers(0, 2, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "jpegs" / label / f"{number}.jpg")
    classifier = mobilenetv2.load(digits_model)
    found = held_out(classifier, digits_model, str(tmp_path / "jpegs"), None)
    for original, prepared in zip(found.batches(), found.prepared.pictures, strict=True):
        assert torch.equal(classifier.prepare(original[0]), prepared)


@pytest.mark.parametrize("form", QUICK)
def test_the_network_alone(form: str, digits_model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    need(form)
    code, _, error = run_cli(
        "export", digits_model, "--format", form, "--raw", "--verify", "digits", "--out", tmp_path
    )
    assert (code, error) == (0, "")
    classifier = mobilenetv2.load(digits_model)
    pictures = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    run = FORMATS[form].open(tmp_path / f"digits-raw{FORMATS[form].suffix}")
    logits = run(classifier.normalize(pictures).numpy())["logits"]
    assert np.abs(logits - classifier.logits(pictures).numpy()).max() < 1e-4


def test_the_file_explains_itself(digits_model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    for raw in ((), ("--raw",)):
        run_cli("export", digits_model, "--verify", "digits", "--out", tmp_path, *raw)
    texts = {
        name: {
            entry.key: entry.value for entry in onnx.load(tmp_path / f"{name}.onnx").metadata_props
        }
        for name in ("digits", "digits-raw")
    }
    assert json.loads(texts["digits"]["labels"]) == list(map(str, range(10)))
    assert texts["digits"]["version"] == mobilenetv2.__version__
    assert "uint8 N×H×W×3" in texts["digits"]["input"]
    assert "mean [0.3]" in texts["digits-raw"]["input"]
    description = json.loads(texts["digits"]["mobilenetv2"])
    assert description == mobilenetv2.load(digits_model).metadata()
    model = onnx.load(tmp_path / "digits.onnx")
    assert [entry.version for entry in model.opset_import] == [17]
    assert {node.domain for node in model.graph.node} == {""}
    names = {node.name for node in model.graph.node}
    assert {"features.0.0", "features.3.conv.1.0", "features.18.0", "features", "logits"} <= names


@pytest.mark.parametrize(
    ("form", "flag"),
    [
        ("onnx", "--fp16"),
        pytest.param("openvino", "--fp16", marks=pytest.mark.slow),
        pytest.param("torch", "--bf16", marks=pytest.mark.slow),
    ],
)
def test_half_the_size(
    form: str, flag: str, digits_model: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    need(form)
    code, _, error = run_cli(
        "export", digits_model, "--format", form, flag, "--verify", "digits", "--out", tmp_path,
        "--max-drop", "0.05",
    )  # fmt: skip
    assert (code, error) == (0, "")
    certificate = json.loads(next(tmp_path.glob("*.certificate.json")).read_text())
    assert certificate["size"] < certificate["reference_size"] - 50_000


@pytest.mark.slow
@pytest.mark.parametrize(("flag", "dtype"), [("--fp16", torch.float16), ("--bf16", torch.bfloat16)])
def test_the_network_alone_in_half_the_size(
    flag: str, dtype: torch.dtype, digits_model: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    code, _, error = run_cli(
        "export", digits_model, "--format", "torch", "--raw", flag, "--verify", "digits", "--out",
        tmp_path, "--max-drop", "0.05",
    )  # fmt: skip
    assert (code, error) == (0, "")
    certificate = json.loads(next(tmp_path.glob("*.certificate.json")).read_text())
    assert certificate["size"] < certificate["reference_size"] - 50_000
    (file,) = tmp_path.glob("*.pt2")
    with zipfile.ZipFile(file) as archive:
        for part in archive.namelist():
            assert b"mobilenetv2.py" not in archive.read(part), "nothing of this machine's folders"
    program = torch.export.load(file)
    assert {weight.dtype for weight in program.state_dict.values()} == {dtype}
    logits = program.module()(torch.zeros(3, 1, 8, 8))
    assert (logits.dtype, logits.shape) == (torch.float32, (3, 10))


# ------------------------------------------------------------------------ what goes wrong


def test_a_file_that_answers_otherwise_is_not_delivered(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    whole = onnx_contract.contract_model

    def damaged(*arguments: Any) -> Any:
        from onnx import numpy_helper

        model = whole(*arguments)
        for constant in model.graph.initializer:
            if constant.name == "features.7.conv.2.weight":
                values = numpy_helper.to_array(constant) * 1.1
                constant.CopyFrom(numpy_helper.from_array(values, constant.name))
        return model

    monkeypatch.setattr("mobilenetv2.shipping.onnx_file.contract_model", damaged)
    for form in ("onnx", "openvino"):
        need(form)
        code, printed, error = run_cli(
            "export", digits_model, "--format", form, "--verify", "digits", "--out", tmp_path
        )
        assert (code, printed) == (1, "")
        assert "logits differ" in error
        assert "features.7.conv.2" in error
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_program_that_answers_otherwise_is_not_delivered(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobilenetv2.shipping import torch_file

    class Damaged(torch_file.Contract):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            assert isinstance(self.network, MobileNetV2)
            with torch.no_grad():
                self.network.features[12].conv[2].weight *= 1.1

    monkeypatch.setattr(torch_file, "Contract", Damaged)
    code, _, error = run_cli(
        "export", digits_model, "--format", "torch", "--verify", "digits", "--out", tmp_path
    )
    assert code == 1
    assert "features.12.conv.2" in error
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_unless_asked(
    digits_model: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    need("onnx")
    out = tmp_path / "mine.onnx"
    out.write_text("precious")
    arguments = ("export", digits_model, "--verify", "digits", "--out", out)
    code, _, error = run_cli(*arguments)
    assert code == 2
    assert "--overwrite" in error
    assert out.read_text() == "precious"
    assert run_cli(*arguments, "--overwrite")[0] == 0
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("form", "present"),
    [
        ("openvino", "mine.bin"),
        ("openvino", "mine.xml.certificate.json"),
        ("openvino", "mine.xml.ladder.png"),
        ("web", "mine.certificate.json"),
        ("web", "mine.ladder.png"),
    ],
)
def test_nor_is_what_would_lie_beside_it(
    form: str, present: str, digits_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("mine" if form == "web" else f"mine{FORMATS[form].suffix}")
    asked: dict[str, Any] = {"model": digits_model, "format": form, "out": out}

    def place(**more: Any) -> Path:
        config = ExportConfig(**asked, **more)
        return page_folder(config) if form == "web" else target(config, FORMATS[form])

    (tmp_path / present).write_text("precious")
    with pytest.raises(ConfigError, match=rf"{present}: is there already.*--overwrite"):
        place(int8=True)
    assert place(int8=True, overwrite=True) == out
    if "ladder" in present:
        assert place() == out, "there is a ladder for 8 bits alone"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--verify"),  # the model lies in no run folder
        (("--verify", "no-such-folder"), "neither a folder nor a known data set"),
        (("--verify", "digits", "--out", "missing/x.onnx"), "no folder"),
        (("--verify", "digits", "--out", "x.xml"), "ends in .onnx"),
        (("--verify", "digits", "--fp16", "--int8"), "name one of them"),
        (("--bf16",), "bf16: not for --format onnx; use --format torch"),
        (("--format", "openvino", "--bf16"), "bf16: not for --format openvino; use --format torch"),
        (("--format", "torch", "--int8"), "int8: not for --format torch; use --format onnx or "),
        (("--format", "litert", "--fp16"), "fp16: not for --format litert; use --format onnx or "),
        (("--format", "executorch", "--int8"), "int8: not for --format executorch"),
    ],
)
def test_requests_that_cannot_be_met(
    arguments: tuple[str, ...], words: str, digits_model: Path, run_cli: RunCli
) -> None:
    code, _, error = run_cli("export", digits_model, *arguments)
    assert code == 2
    assert words in error


@pytest.mark.parametrize("arguments", [(), ("--int8",), ("--format", "web")])
def test_what_is_not_installed_is_told_before_pictures_are_read(
    arguments: tuple[str, ...], digits_model: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "installed", lambda library: library != "onnxruntime")
    monkeypatch.setattr("mobilenetv2.shipping.held_out.held_out", lambda *_: pytest.fail("read"))
    code, _, error = run_cli("export", digits_model, "--verify", "digits", *arguments)
    assert code == 2
    assert "pip install" in error


def test_a_place_that_cannot_be_written(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    code, _, error = run_cli("export", digits_model, "--verify", "digits", "--out", tmp_path)
    assert code == 2
    assert "cannot be written" in error


def test_other_classes_are_named(
    digits_model: Path, picture_folder: Callable[..., Path], run_cli: RunCli, tmp_path: Path
) -> None:
    code, _, error = run_cli(
        "export", digits_model, "--verify", picture_folder(), "--out", tmp_path
    )
    assert code == 2
    assert "does not know the class 'dark'" in error


def test_a_missing_library_comes_with_its_command(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenetv2.runtimes.installed.installed", lambda *_: False)
    code, _, error = run_cli("export", digits_model, "--verify", "digits", "--out", tmp_path)
    assert code == 2
    assert re.search(r'onnx.*pip install .*\[export\]"', error)
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_is_refused_by_the_file(
    digits_model: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    need("onnx")
    run_cli("export", digits_model, "--verify", "digits", "--out", tmp_path)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "digits.onnx"))
    right = np.zeros((1, 9, 9, 3), np.uint8)
    session.run(None, {"pictures": right})
    for wrong in (right.astype(np.float32), right[0], right[..., :1]):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            session.run(None, {"pictures": wrong})


def test_the_size_of_a_file_whose_name_is_a_pattern(tmp_path: Path) -> None:
    for name in ("m[1].xml", "m[1].bin", "m1.xml"):
        (tmp_path / name).write_bytes(b"1234")
    assert size_of(tmp_path / "m[1].xml") == 8


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="name one of them"):
        ExportConfig(model=Path("x"), fp16=True, int8=True)
