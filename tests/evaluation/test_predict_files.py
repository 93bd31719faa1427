"""Prediction over files: every file once, in order, whatever it is, with little memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.data import many_files
from mobilenetv2.errors import UserError
from mobilenetv2.evaluation import predict_files as module
from mobilenetv2.evaluation.predict_files import FilePrediction, predict_files


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number:02}.png" for number in range(45)]
    for number, path in enumerate(paths):
        if number % 10 == 7:
            path.write_text("no picture")
        else:
            Image.fromarray(random.integers(0, 256, (20, 24), np.uint8)).save(path)
    paths.insert(20, tmp_path / "gone.png")
    return paths


@pytest.mark.parametrize(
    ("batch_size", "workers"),
    [(4, 3), (100, 1)]
    + [pytest.param(*some, marks=pytest.mark.slow) for some in ((1, 1), (1, 3), (4, 1), (100, 3))],
)
def test_every_file_once_in_order(
    small_classifier: Classifier, files: list[Path], batch_size: int, workers: int
) -> None:
    found = list(predict_files(small_classifier, iter(files), 2, workers, batch_size))
    assert [one.path for one in found] == files
    for one in found:
        if one.error is not None:
            assert one.predictions == ()
            continue
        (expected,) = small_classifier.predict(one.path, top=2)
        assert [p.label for p in one.predictions] == [p.label for p in expected]
        assert [p.probability for p in one.predictions] == pytest.approx(
            [p.probability for p in expected], rel=1e-4
        )
    errors = {one.path.name: one.error for one in found if one.error}
    assert errors.keys() == {"07.png", "17.png", "27.png", "37.png", "gone.png"}
    assert errors["gone.png"] == "the file is gone"


def test_no_more_files_are_taken_than_are_needed_soon(
    small_classifier: Classifier, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "threads_for", lambda _: 2)
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield files[0]

    predictions = predict_files(small_classifier, endless(), 1, batch_size=3)
    next(predictions)
    assert taken <= module.SAMPLE
    for _ in range(150):
        next(predictions)
    predictions.close()
    assert taken <= 151 + 2 * module.BATCHES_AHEAD * 3 + 3


@pytest.mark.parametrize(
    ("side", "kilobytes", "workers", "batch"),
    [(28, 1, 1, 256), (64, 1, 1, 256), (65, 1, 5, 16), (224, 1, 5, 16), (28, 99, 5, 16)],
)
def test_small_pictures_go_to_one_worker_in_large_batches(
    side: int, kilobytes: int, workers: int, batch: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A network is soon through with them, and workers would wait for Python's lock.

    Large photos stay divided, however small the network wants them.
    """
    wanted = Preprocessing(
        colour="rgb", height=side, width=side, resize=side, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    classifier = Classifier.create(NetworkConfig(width=0.1), wanted, ("a", "b"))
    file = tmp_path / "a.png"
    file.write_bytes(bytes(kilobytes << 10))
    pools, batches = [], []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int, **options: Any) -> None:
            pools.append(workers)
            super().__init__(workers, **options)

    def name(_: Classifier, paths: list[Path], __: int) -> list[FilePrediction]:
        batches.append(len(paths))
        return [FilePrediction(path, ()) for path in paths]

    monkeypatch.setattr(module, "available_cores", lambda: 5)
    monkeypatch.setattr(many_files, "available_cores", lambda: 5)
    monkeypatch.setattr(module, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(module, "_predict_batch", name)
    paths = [file] * 1000
    assert len(list(module.predict_files(classifier, iter(paths), 1))) == 1000
    assert pools == [workers]
    assert max(batches) == batch
    assert module.workers_for(classifier, paths) == workers


def test_threads_are_given_back(small_classifier: Classifier, files: list[Path]) -> None:
    before = torch.get_num_threads()
    predictions = predict_files(small_classifier, files, 1, batch_size=2)
    next(predictions)
    assert torch.get_num_threads() == before
    predictions.close()
    assert torch.get_num_threads() == before


def test_no_labels_at_all_make_no_sense(small_classifier: Classifier, files: list[Path]) -> None:
    with pytest.raises(UserError, match="at least 1 label"):
        list(predict_files(small_classifier, files, -1))
