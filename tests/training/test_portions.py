"""Which training pictures are measured, and which the first head is solved on."""

from dataclasses import replace

import pytest
import torch

from mobilenetv2.config import DataConfig
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.sources import DataSet, load_data
from mobilenetv2.training import portions


def data_set(side: int, train: int, val: int) -> DataSet:
    """Grey pictures; those for training have a margin, and each has a label of its own."""

    def pictures(count: int, side: int) -> LabelledPictures:
        return LabelledPictures(
            torch.zeros(count, 1, side, side, dtype=torch.uint8), torch.arange(count)
        )

    digits = load_data(DataConfig(data="digits"))
    size = digits.preprocessing.model_copy(update={"height": side, "width": side})
    return replace(
        digits, train=pictures(train, side + 4), val=pictures(val, side), preprocessing=size
    )


@pytest.mark.parametrize(
    ("side", "train", "val", "count"),
    [
        (28, 900, 90, 500),  # small ones are measured 500 at a time
        (28, 900, 700, 700),
        (28, 300, 90, 300),
        (224, 60, 9, 40),  # 40 photos take as much memory
        (224, 60, 50, 50),
    ],
)
def test_as_many_as_for_validation_or_as_go_at_once(
    side: int, train: int, val: int, count: int
) -> None:
    sample = portions.to_measure(data_set(side, train, val))
    assert sample.pictures.shape == (count, 1, side, side)
    assert len(sample.labels.unique()) == count
    again = portions.to_measure(data_set(side, train, val))
    assert torch.equal(sample.labels, again.labels)


def test_not_more_are_copied_to_measure_than_memory_is_meant_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_set(28, 900, 700)
    monkeypatch.setattr(portions, "MOST_TO_MEASURE", 600 * data.train.pictures[0].nbytes)
    assert len(portions.to_measure(data)) == 600
    assert len(portions.to_measure(data_set(28, 900, 90))) == 500


def test_very_many_pictures_are_not_all_needed_for_a_first_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = data_set(8, 300, 30)
    assert torch.equal(portions.for_first_head(data).labels, data.train.labels)
    monkeypatch.setattr(portions, "MOST_FOR_FIRST_HEAD", 100)
    few = portions.for_first_head(data)
    assert few.pictures.shape == (100, 1, 8, 8)
    assert len(few.labels.unique()) == 100
    assert int(few.labels.max()) > 200  # from the whole set, not its beginning
