"""Runs beside each other: which settings were others, and means over seeds."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilenetv2.errors import ModelFileError
from mobilenetv2.settings import to_yaml
from mobilenetv2.training.comparison import ComparedRun, read_run, repeated
from mobilenetv2.training.recipes import configure

EPOCHS = [
    {"event": "epoch", "epoch": number, "val_loss": 1 / number, "val_accuracy": accuracy,
     "seconds": 5.0 * number}
    for number, accuracy in enumerate((0.5, 0.8, 0.7), 1)
]  # fmt: skip


def run(
    path: Path, val: float | None, test: float | None = None, data: str = "digits", **settings: Any
) -> ComparedRun:
    """A folder as training leaves it; without ``val`` one that has not ended."""
    path.mkdir()
    config = configure(data, out=path, **settings)
    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    lines = [json.dumps(event) for event in EPOCHS]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if val is not None:
        result = {
            "val_accuracy": val, "test_accuracy": test, "accuracy_interval": [0.1, 0.9],
            "seconds": 12.5, "lr": 0.07, "best_epoch": 2, "classes": [{"pictures": 3}],
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return read_run(path)


def test_only_what_figures_can_depend_on_is_compared(tmp_path: Path) -> None:
    base = run(tmp_path / "base", 0.9, 0.8)
    assert base.other_than(base) == {}
    elsewhere = run(
        tmp_path / "elsewhere", 0.9, data_dir=tmp_path, checkpoint_every="epoch", quiet=True
    )
    assert elsewhere.other_than(base) == {}
    other = run(tmp_path / "other", 0.9, lr=0.2, milestones=(3.0,), flip=True, precision="fp32")
    changed = {"lr": 0.2, "milestones": [3.0], "flip": True, "precision": "fp32"}
    assert other.other_than(base) == changed
    assert other.to_json(base)["other_settings"] == changed


def test_a_rate_that_was_searched_is_the_one_that_was_found(tmp_path: Path) -> None:
    found = run(tmp_path / "found", 0.9, lr="auto")
    same = run(tmp_path / "same", 0.9, lr=0.07)
    assert found.other_than(same) == {}


def test_a_run_that_has_not_ended_shows_what_it_would_keep(tmp_path: Path) -> None:
    best = run(tmp_path / "best", None, keep="best")
    assert (best.val_accuracy, best.has_ended, best.seconds) == (0.8, False, 15.0)
    assert (best.test_accuracy, best.interval) == (None, None)
    assert run(tmp_path / "last", None, keep="last").val_accuracy == 0.7
    (tmp_path / "best" / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 1}\n[1]\n{"ev')
    assert read_run(tmp_path / "best").epochs == ()
    (tmp_path / "best" / "metrics.jsonl").unlink()
    begun = read_run(tmp_path / "best")
    assert (begun.val_accuracy, begun.seconds, begun.epochs) == (None, None, ())


def test_means_are_over_seeds_alone(tmp_path: Path) -> None:
    val, test = [0.9, 0.94, 0.95], [0.8, 0.85, 0.84]
    runs = [
        run(tmp_path / f"{seed}", *figures, seed=seed)
        for seed, figures in enumerate(zip(val, test, strict=True))
    ]
    again = run(tmp_path / "again", 0.9, 0.8, seed=0)  # no other sample
    other = run(tmp_path / "other", 0.99, 0.99, seed=4, lr=0.2)
    unended = run(tmp_path / "unended", None, seed=5)
    (group,) = repeated([*runs, again, other, unended])
    assert [one.path for one in group.runs] == [one.path for one in runs]
    assert group.val == pytest.approx((np.mean(val), np.std(val, ddof=1)))
    assert group.test == pytest.approx((statistics.mean(test), statistics.stdev(test)))
    assert group.to_json()["seeds"] == [0, 1, 2]
    partly = [runs[0], run(tmp_path / "untested", 0.9, None, seed=9)]
    assert repeated(partly)[0].test is None
    assert repeated([other]) == []


def test_figures_of_other_pictures_are_told_apart(tmp_path: Path) -> None:
    base = run(tmp_path / "base", 0.9)
    assert base.same_pictures_as(run(tmp_path / "seed", 0.9, seed=3, lr=0.4))
    assert base.same_pictures_as(run(tmp_path / "unended", None))
    for name, settings in {
        "data": {"data": "mnist", "network": base.settings["network"]},
        "split": {"split_seed": 1},
        "fraction": {"val_fraction": 0.2},
        "size": {"image_size": 16},
    }.items():
        assert not base.same_pictures_as(run(tmp_path / name, 0.9, **settings))
    result = tmp_path / "seed" / "result.json"
    result.write_text(result.read_text().replace('"pictures": 3', '"pictures": 4'))
    assert not base.same_pictures_as(read_run(tmp_path / "seed"))  # the folder has grown


def test_a_folder_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    for number, name in enumerate(("photos", "photos/", "./photos")):
        assert run(tmp_path / str(number), 0.9, data=name).settings["data"] == "photos"


@pytest.mark.parametrize("damage", ["", "{}", "[]", "[" * 100_000, '{"val_accuracy": NaN}', "\xff"])
def test_a_damaged_result_is_named(tmp_path: Path, damage: str) -> None:
    run(tmp_path / "run", 0.9)
    (tmp_path / "run" / "result.json").write_text(damage, encoding="latin-1")
    with pytest.raises(ModelFileError, match=r"result\.json: cannot be read \(it is not what"):
        read_run(tmp_path / "run")
    with pytest.raises(ModelFileError, match="not a run folder"):
        read_run(tmp_path)
