"""The classifier: one file, read back exactly, and nothing else accepted."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from mobilenetv2.classifier import METADATA_KEY, Classifier
from mobilenetv2.errors import ModelFileError, UserError


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


def test_anyone_can_read_the_metadata(small_classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    small_classifier.save(path)
    with safe_open(str(path), "pt") as file:
        description = json.loads(file.metadata()[METADATA_KEY])
    assert description["labels"] == ["ant", "bee", "Käfer"]
    assert description["preprocessing"]["mean"] == [0.4]
    assert description["network"]["width"] == 0.1


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
    for text in ("", "{", "[]", "3", "[" * 100_000):
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
