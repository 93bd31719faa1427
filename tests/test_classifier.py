"""The classifier: one file, read back exactly, and nothing else accepted."""

import contextlib
import dataclasses
import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save

from mobilenetv2.classifier import Classifier, _constants
from mobilenetv2.errors import ModelFileError, UserError, WorkFailed
from mobilenetv2.model_file import LONGEST_DESCRIPTION, METADATA_KEY, MOST_TENSORS
from mobilenetv2.seals import seal_safetensors


def save_file(
    weights: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """As :meth:`Classifier.save` writes it, whatever it is."""
    data = bytearray(save(weights, metadata or {"format": "pt"}))
    seal_safetensors(data)
    path.write_bytes(data)


def pictures(count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8)


def test_saved_and_loaded_it_answers_the_same(small_classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small_classifier.save(path)
    loaded = Classifier.load(path)
    batch = pictures()
    assert torch.equal(loaded.logits(batch), small_classifier.logits(batch))
    assert loaded.labels == ("ant", "bee", "Käfer")
    assert loaded.preprocessing == small_classifier.preprocessing
    assert loaded.config == small_classifier.config
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_same_classifier_is_the_same_file(small_classifier: Classifier, tmp_path: Path) -> None:
    files = set()
    for number in range(20):
        small_classifier.save(tmp_path / str(number))
        files.add((tmp_path / str(number)).read_bytes())
    assert len(files) == 1


def test_anyone_can_read_the_metadata(small_classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small_classifier.save(path)
    with safe_open(str(path), "pt") as file:
        description = json.loads(file.metadata()[METADATA_KEY])
    assert description["labels"] == ["ant", "bee", "Käfer"]
    assert description["preprocessing"]["mean"] == [0.4]
    assert description["network"]["width"] == 0.1


def test_gradients_reach_the_pictures_after_inference_too(small_classifier: Classifier) -> None:
    size = small_classifier.preprocessing
    pictures = torch.zeros(1, size.channels, size.height, size.width)
    _constants.cache_clear()
    with torch.inference_mode():
        small_classifier.normalize(pictures)
    pictures.requires_grad = True
    small_classifier.normalize(pictures).sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad > 0).all()


def test_normalisation_is_the_formula(small_classifier: Classifier) -> None:
    batch = pictures()
    expected = (batch.double() / 255 - 0.4) / 0.3
    torch.testing.assert_close(
        small_classifier.normalize(batch).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_the_folded_copy_answers_the_same(small_classifier: Classifier) -> None:
    batch = pictures()
    torch.testing.assert_close(
        small_classifier.for_inference().logits(batch),
        small_classifier.logits(batch),
        rtol=1e-4,
        atol=1e-5,
    )


def test_modes_are_given_back_and_nothing_needs_gradients(small_classifier: Classifier) -> None:
    small_classifier.network.train()
    first = small_classifier.network.features[0]
    first.eval()
    logits = small_classifier.logits(pictures())
    assert not logits.requires_grad
    assert small_classifier.network.training
    assert not first.training
    assert small_classifier.network.features[1].training


def test_predict_takes_files_images_and_arrays(
    small_classifier: Classifier, tmp_path: Path
) -> None:
    array = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    answers = small_classifier.predict(
        [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array], top=99
    )
    assert answers[0] == answers[1] == answers[2] == answers[3]
    assert len(answers[0]) == 3
    probabilities = [one.probability for one in answers[0]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    expected = small_classifier.logits(torch.from_numpy(array)[None, None])[0].softmax(0)
    assert answers[0][0].label == small_classifier.labels[int(expected.argmax())]


def test_many_pictures_go_in_batches(small_classifier: Classifier) -> None:
    arrays = list(np.random.default_rng(0).integers(0, 256, (70, 16, 16), dtype=np.uint8))
    together = small_classifier.predict(arrays, top=1)
    alone = [small_classifier.predict([array], top=1)[0] for array in arrays]
    assert [one[0].label for one in together] == [one[0].label for one in alone]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((16, 16), np.float32),
        np.zeros((16, 16, 4), np.uint8),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros(16, np.uint8),
        np.zeros((0, 16), np.uint8),
        np.zeros((16, 16), bool),
        np.zeros((16, 16), np.int64),
    ],
)
def test_other_arrays_are_refused(small_classifier: Classifier, array: np.ndarray) -> None:
    with pytest.raises(UserError, match="must be uint8 of shape"):
        small_classifier.predict([array])


def test_files_of_other_kinds_are_refused(tmp_path: Path, small_classifier: Classifier) -> None:
    path = tmp_path / "x.safetensors"
    for contents in (b"", b"hello", b"\xff" * 100, bytes(8), (2**62).to_bytes(8, "little")):
        path.write_bytes(contents)
        with pytest.raises(ModelFileError, match=str(path)):
            Classifier.load(path)
    with pytest.raises(ModelFileError):
        Classifier.load(tmp_path / "missing.safetensors")
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelFileError, match="no classifier"):
        Classifier.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["only", "two"]}, "do not fit the network"),
        ({"labels": "abc"}, "description is damaged"),
        ({"labels": ["a", "b", "\ud800"]}, "description is damaged.*lone surrogate"),
        ({"network": {"width": 1e9}}, "description is damaged"),
        ({"network": {"width": 0.35}}, "do not fit the network"),
        ({"network": {"network": "first-version"}}, "do not fit the network"),
        ({"preprocessing": {"colour": "rgb"}}, "description is damaged"),
        ({"preprocessing": None}, "description is damaged"),
        ({"network": {"no_such": 1}}, "description is damaged"),
    ],
)
def test_wrong_descriptions_are_refused(
    small_classifier: Classifier, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "x.safetensors"
    weights = small_classifier.network.state_dict()
    save_file(weights, path, {METADATA_KEY: json.dumps(small_classifier.metadata() | change)})
    with pytest.raises(ModelFileError, match=words):
        Classifier.load(path)


def test_metadata_that_is_no_json(tmp_path: Path, small_classifier: Classifier) -> None:
    path = tmp_path / "x.safetensors"
    for text in ("", "{", "[]", "3", "[" * 100_000, f'{" " * LONGEST_DESCRIPTION}"x"'):
        save_file({"a": torch.zeros(2)}, path, {METADATA_KEY: text})
        with pytest.raises(ModelFileError):
            Classifier.load(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_flipped_and_cut_headers_never_crash(
    small_classifier: Classifier, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "x.safetensors"
    small_classifier.save(path)
    contents = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(contents[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header - 1))
        contents[place] ^= data.draw(st.integers(1, 255))
    length = data.draw(st.integers(0, len(contents)))
    for damaged in (contents, contents[:length]):
        path.write_bytes(damaged)
        with contextlib.suppress(ModelFileError):
            Classifier.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_predict(
    small_classifier: Classifier, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "x.safetensors"
    weights = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in small_classifier.network.state_dict().items()
    }
    save_file(weights, path, {METADATA_KEY: json.dumps(small_classifier.metadata())})
    batch = pictures()
    tolerance = 1e-6 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(
        Classifier.load(path).logits(batch), small_classifier.logits(batch),
        rtol=tolerance, atol=tolerance,
    )  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint8]
)
def test_weights_that_are_no_real_numbers_are_refused(
    small_classifier: Classifier, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "x.safetensors"
    weights = {name: t.to(dtype) for name, t in small_classifier.network.state_dict().items()}
    save_file(weights, path, {METADATA_KEY: json.dumps(small_classifier.metadata())})
    with pytest.raises(ModelFileError, match="do not fit the network"):
        Classifier.load(path)


def test_a_classifier_has_labels(small_classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    weights = small_classifier.network.state_dict()
    for name in ("classifier.1.weight", "classifier.1.bias"):
        weights[name] = weights[name][:0]
    save_file(
        weights, path, {METADATA_KEY: json.dumps(small_classifier.metadata() | {"labels": []})}
    )
    with pytest.raises(ModelFileError, match="description is damaged"):
        Classifier.load(path)


def test_numbers_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path, {METADATA_KEY: '{"a": ' + "1" * 5000 + "}"})
    with pytest.raises(ModelFileError, match="not JSON"):
        Classifier.load(path)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"labels": [1] * 300_000}, "labels|description is damaged"),
        ({"labels": ["a"] * 200_000}, "a label appears twice"),
        ({"network": {str(number): 1 for number in range(50_000)}}, "network: too long"),
        ({"network": {"width": [0] * 300_000}}, "network: too long"),
        ({"preprocessing": {"mean": [""] * 200_000}}, "preprocessing: too long"),
        ({"training": [[]] * 200_000}, "training: not a mapping"),
    ],
)
def test_endless_descriptions_are_refused_shortly(
    small_classifier: Classifier, tmp_path: Path, about: dict[str, object], words: str
) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps(small_classifier.metadata() | about)
    save_file({"a": torch.zeros(2)}, path, {METADATA_KEY: text})
    with pytest.raises(ModelFileError, match=words) as refused:
        Classifier.load(path)
    assert len(str(refused.value)) < 1000


def test_endless_headers_are_refused(small_classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    about = {METADATA_KEY: json.dumps(small_classifier.metadata())}
    save_file({str(number): torch.zeros(0) for number in range(MOST_TENSORS + 1)}, path, about)
    with pytest.raises(ModelFileError, match="10,001 tensors are no classifier's"):
        Classifier.load(path)
    save_file({"a": torch.zeros(2)}, path, about | {"more": "x" * 8 * LONGEST_DESCRIPTION})
    with pytest.raises(ModelFileError, match="not a whole model"):
        Classifier.load(path)


def test_shapes_that_no_tensor_has_are_refused(
    small_classifier: Classifier, tmp_path: Path
) -> None:
    """No numbers in 2⁶³ rows: safetensors lets it through, and PyTorch cannot count so far."""
    path = tmp_path / "x.safetensors"
    about = {METADATA_KEY: json.dumps(small_classifier.metadata())}
    data = save({"a": torch.zeros(0, 1)}, about)
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(b"[0,1]", b"[0,9223372036854775808]")
    changed = bytearray(len(header).to_bytes(8, "little") + header + data[8 + size :])
    seal_safetensors(changed)
    path.write_bytes(changed)
    with pytest.raises(ModelFileError, match="not a readable safetensors file") as refused:
        Classifier.load(path)
    assert "\n" not in str(refused.value)


def test_labels_in_a_broken_encoding_survive(small_classifier: Classifier, tmp_path: Path) -> None:
    """As of a folder that another system named: refusing it after a training would lose that."""
    path = tmp_path / "x.safetensors"
    labels = ("caf\udce9", "b", "虎")
    dataclasses.replace(small_classifier, labels=labels).save(path)
    assert Classifier.load(path).labels == labels


def test_a_failed_save_keeps_the_old_model(
    small_classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    small_classifier.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkFailed, match="No space left"):
        small_classifier.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_loaded_classifier_can_be_trained_on(
    small_classifier: Classifier, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    small_classifier.save(path)
    loaded = Classifier.load(path)
    network = loaded.network.train()
    network(loaded.normalize(pictures())).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not any(tensor.is_meta for tensor in network.state_dict().values())


def test_sixteen_bit_greys_keep_their_scale_from_pillow(
    small_classifier: Classifier, tmp_path: Path
) -> None:
    """A dark picture stays dark, whether its file is named or opened with Pillow."""
    path = tmp_path / "dark.pgm"
    values = np.random.default_rng(0).integers(0, 250, (16, 16)).astype(">u2")
    path.write_bytes(b"P5\n16 16\n65535\n" + values.tobytes())
    from_file = small_classifier.prepare(path)
    with Image.open(path) as image:
        assert torch.equal(small_classifier.prepare(image), from_file)
    assert from_file.max() <= 1


BROKEN_EXIF = [b"Exif\0\0nonsense", b"Exif\0\0II*\0"]


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_broken_metadata_of_a_picture_in_memory(
    small_classifier: Classifier, exif: bytes, kind: str
) -> None:
    file = io.BytesIO()
    plain = Image.effect_noise((40, 20), 90)
    plain.save(file, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    picture = Image.open(file)
    expected = small_classifier.prepare(np.asarray(picture))
    assert torch.equal(small_classifier.prepare(picture), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("saved", [False, True])
def test_pictures_in_memory_are_turned_upright(
    small_classifier: Classifier, orientation: int, saved: bool
) -> None:
    picture = Image.effect_noise((40, 20), 90)
    picture.getexif()[0x0112] = orientation
    if saved:
        file = io.BytesIO()
        picture.save(file, "TIFF", exif=picture.getexif())
        picture = Image.open(file)
    expected = small_classifier.prepare(np.asarray(ImageOps.exif_transpose(picture)))
    assert torch.equal(small_classifier.prepare(picture), expected)


def test_predicting_leaves_the_picture_alone(small_classifier: Classifier) -> None:
    image = Image.fromarray(np.arange(12 * 30, dtype=np.uint8).reshape(12, 30))
    before = image.tobytes()
    small_classifier.predict([image])
    assert (image.size, image.tobytes()) == ((30, 12), before)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_loads_also_predicts(
    small_classifier: Classifier, tmp_path: Path, data: st.DataObject
) -> None:
    """Wherever a byte is changed, the file is refused or gives logits."""
    path = tmp_path / "x.safetensors"
    if not path.exists():
        small_classifier.save(path)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    contents = bytearray((tmp_path / "whole").read_bytes())
    header = 8 + int.from_bytes(contents[:8], "little")
    place = data.draw(st.integers(0, header - 1) | st.integers(header, len(contents) - 1))
    contents[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'FIUB0123456789"{}[]:,'))
    path.write_bytes(contents)
    try:
        loaded = Classifier.load(path)
    except ModelFileError:
        return
    preprocessing = loaded.preprocessing
    shape = (1, preprocessing.channels, preprocessing.height, preprocessing.width)
    assert loaded.logits(torch.zeros(shape, dtype=torch.uint8)).shape == (1, 3)


@pytest.mark.parametrize(("count", "foldings"), [(0, 0), (1, 0), (31, 0), (32, 1), (100, 1)])
def test_folding_happens_once_and_only_for_many(
    small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch, count: int, foldings: int
) -> None:
    folded, original = [], Classifier.for_inference

    def for_inference(self: Classifier) -> Classifier:
        folded.append(1)
        return original(self)

    monkeypatch.setattr(Classifier, "for_inference", for_inference)
    answers = small_classifier.predict([np.zeros((16, 16), np.uint8)] * count)
    assert (len(answers), len(folded)) == (count, foldings)


def test_one_picture_need_not_be_a_list(small_classifier: Classifier, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = small_classifier.predict([pixels])
    for one in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(pixels), pixels):
        assert small_classifier.predict(one) == expected
    grey = pixels[..., 0]
    assert small_classifier.predict(grey) == small_classifier.predict([grey])
    assert len(small_classifier.predict(np.stack([grey, grey]))) == 2


@pytest.mark.parametrize("top", [0, -1])
def test_no_labels_at_all_make_no_sense(small_classifier: Classifier, top: int) -> None:
    with pytest.raises(UserError, match="at least 1 label"):
        small_classifier.predict([np.zeros((16, 16), np.uint8)], top=top)
