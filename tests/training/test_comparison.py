"""Runs beside each other: which settings were others, and means over seeds."""

import json
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
            "macro_f1": 0.75,
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


def test_a_row_tells_what_its_figures_are_of(tmp_path: Path) -> None:
    untested, tested = run(tmp_path / "untested", 0.9), run(tmp_path / "tested", 0.9, 0.8)
    rows = [one.to_json(tested) for one in (untested, tested, run(tmp_path / "unended", None))]
    key = "interval_and_macro_f1_of"
    assert [row[key] for row in rows] == ["validation", "test", None]
    assert [row["macro_f1"] for row in rows] == [0.75, 0.75, None]


def test_a_rate_that_was_searched_is_the_one_that_was_found(tmp_path: Path) -> None:
    found = run(tmp_path / "found", 0.9, lr="auto")
    same = run(tmp_path / "same", 0.9, lr=0.07)
    assert found.other_than(same) == same.other_than(found) == {}
    other = tmp_path / "found" / "result.json"
    other.write_text(other.read_text().replace("0.07", "0.05"))
    assert read_run(tmp_path / "found").other_than(same) == {"lr": 0.05}


def test_rates_that_seeds_have_found_belong_to_the_seeds(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"{seed}", 0.9, lr="auto", seed=seed) for seed in (0, 1)]
    result = tmp_path / "1" / "result.json"
    result.write_text(result.read_text().replace("0.07", "0.05"))
    assert len(repeated([runs[0], read_run(tmp_path / "1")])) == 1


def test_other_machines_and_versions_are_no_other_seeds(tmp_path: Path) -> None:
    one, other = (run(tmp_path / f"{seed}", 0.9, seed=seed) for seed in (0, 1))
    for figure in ("device", "precision", "fast_ops", "version"):
        assert len(repeated([one, other])) == 1
        result = json.loads((tmp_path / "1" / "result.json").read_text()) | {figure: "another"}
        (tmp_path / "2").mkdir(exist_ok=True)
        (tmp_path / "2" / "config.yaml").write_text((tmp_path / "1" / "config.yaml").read_text())
        (tmp_path / "2" / "result.json").write_text(json.dumps(result))
        assert repeated([one, read_run(tmp_path / "2")]) == []


def test_a_run_that_has_not_ended_shows_what_it_would_keep(tmp_path: Path) -> None:
    best = run(tmp_path / "best", None, keep="best")
    assert (best.val_accuracy, best.has_ended, best.seconds) == (0.8, False, 15.0)
    assert (best.test_accuracy, best.interval) == (None, None)
    assert run(tmp_path / "last", None, keep="last").val_accuracy == 0.7
    good = json.dumps(EPOCHS[0])
    for bad in (
        "[1]", '{"ev', '{"event": "epoch", "epoch": 1}', "[" * 100_000,
        good.replace("0.5", "NaN"), good.replace("5.0", '"x"'), good.replace("0.5", "1" * 400),
    ):  # fmt: skip
        (tmp_path / "best" / "metrics.jsonl").write_text(f"{good}\n{bad}\n{good}\n")
        assert len(read_run(tmp_path / "best").epochs) == 1, bad[:50]
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
    unended = [run(tmp_path / f"unended {seed}", None, seed=seed) for seed in (5, 6)]
    (group,) = repeated([*runs, again, other, *unended])
    assert [one.path for one in group.runs] == [one.path for one in runs]
    for spread, values in ((group.val, val), (group.test, test)):
        assert spread is not None
        assert spread.mean == pytest.approx(np.mean(values))
        assert spread.standard_deviation == pytest.approx(np.std(values, ddof=1))
    assert group.again == (again,)
    assert group.to_json()["seeds"] == [0, 1, 2]
    assert group.to_json()["same_seed_again"] == [str(again.path)]
    assert repeated([runs[0], again]) == []
    partly = [runs[0], run(tmp_path / "untested", 0.9, None, seed=9)]
    assert repeated(partly)[0].test is None
    assert repeated([other]) == []


def test_figures_of_other_pictures_are_told_apart(tmp_path: Path) -> None:
    base = run(tmp_path / "base", 0.9)
    for name, same in {
        "seed": {"seed": 3, "lr": 0.4},
        "size": {"image_size": 16, "colour": "grey"},  # the same pictures, seen in another way
    }.items():
        assert run(tmp_path / name, 0.9, **same).on_other_pictures_than(base) == ""
    assert run(tmp_path / "unended", None).on_other_pictures_than(base) == ""
    for name, split in {"split": {"split_seed": 1}, "fraction": {"val_fraction": 0.2}}.items():
        assert run(tmp_path / name, 0.9, **split).on_other_pictures_than(base) == "validation"
    other = run(tmp_path / "data", 0.9, data="mnist")
    assert other.on_other_pictures_than(base) == "validation and test"
    result = tmp_path / "seed" / "result.json"
    result.write_text(result.read_text().replace('"pictures": 3', '"pictures": 4'))
    grown = read_run(tmp_path / "seed")
    assert grown.on_other_pictures_than(base) == "validation and test"


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
