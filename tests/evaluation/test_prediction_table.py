"""Predictions in files: what an earlier call left is gone on with, whatever else is left alone."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mobilenetv2.classifier import Classifier, Prediction
from mobilenetv2.errors import UserError
from mobilenetv2.evaluation.predict_files import FilePrediction
from mobilenetv2.evaluation.prediction_table import (
    LINES_TOGETHER,
    CsvWriter,
    JsonLinesWriter,
    PredictionWriter,
    Written,
    already_written,
    append,
    require_same_classifier,
)

BOTH = pytest.mark.parametrize("kind", [CsvWriter, JsonLinesWriter])
Kind = Callable[[int], PredictionWriter]

NAMES = ["a.png", "b, ü.png", os.fsdecode(b"K\xe4fer.png"), "line\nbreak\r.png", "c.png"]


def predictions() -> Iterator[FilePrediction]:
    for name in NAMES:
        yield FilePrediction(Path(name), [Prediction("ant", 0.75), Prediction("bee", 0.25)])
    yield FilePrediction(Path("broken.png"), (), "no picture")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "out"


@BOTH
def test_what_was_written_is_read_back(kind: Kind, target: Path) -> None:
    writer = kind(2)
    assert append(target, writer, predictions()) == 1
    found = already_written(target, writer)
    assert [one.name for one in found] == [writer.name(one.path) for one in predictions()]
    assert [one.best and one.best.label for one in found] == ["ant"] * 5 + [None]
    assert already_written(target.parent / "missing", writer) == []


@BOTH
@pytest.mark.parametrize("line_break", [b"\n", b"\r\n"])
def test_a_kill_at_any_byte_loses_one_line_at_most(
    kind: Kind, target: Path, line_break: bytes
) -> None:
    writer = kind(2)
    append(target, writer, predictions())
    whole = target.read_bytes().replace(b"\n", line_break)
    for size in range(0, len(whole), 3):
        target.write_bytes(whole[:size])
        lines = max(0, whole[:size].count(b"\n") - bool(writer.header))
        assert len(already_written(target, writer)) == lines
        left = target.read_bytes()
        assert left == whole[: whole[:size].rfind(b"\n") + 1]


@BOTH
@pytest.mark.parametrize(
    "contents",
    [b"my thesis", b"my thesis\n", b'{"path": 1, "mine": 2}', b"path;error", b"\xff\x00"],
)
def test_other_files_stay_as_they_are(kind: Kind, target: Path, contents: bytes) -> None:
    target.write_bytes(contents)
    with pytest.raises(UserError, match=r"name another file"):
        already_written(target, kind(2))
    assert target.read_bytes() == contents


def test_a_foreign_tail_is_not_cut_off(target: Path) -> None:
    writer = JsonLinesWriter(2)
    append(target, writer, predictions())
    with target.open("a") as file:
        file.write("a remark of mine")
    before = target.read_bytes()
    with pytest.raises(UserError, match="something else"):
        already_written(target, writer)
    assert target.read_bytes() == before


@BOTH
def test_another_number_of_labels_is_named(kind: Kind, target: Path) -> None:
    append(target, kind(2), predictions())
    with pytest.raises(UserError, match="--top"):
        already_written(target, kind(1))


@BOTH
def test_cutting_writes_nothing_anew(
    kind: Kind, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a kill in that moment would lose everything."""
    writer = kind(2)
    append(target, writer, predictions())
    os.truncate(target, target.stat().st_size - 1)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("rewritten")

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert len(already_written(target, writer)) == len(NAMES)


@BOTH
def test_lines_reach_the_file_while_the_work_goes_on(kind: Kind, target: Path) -> None:
    writer = kind(2)
    header = bool(writer.header)

    def watched() -> Iterator[FilePrediction]:
        assert target.read_bytes().count(b"\n") == header
        for number in range(LINES_TOGETHER):
            yield FilePrediction(Path(f"{number}.png"), (), "no picture")
        assert target.read_bytes().count(b"\n") == header + LINES_TOGETHER

    append(target, writer, watched())


def test_a_pipe_holds_nothing_and_is_not_waited_for(target: Path) -> None:
    os.mkfifo(target)
    reader = os.open(target, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert already_written(target, CsvWriter(2)) == []
        append(target, CsvWriter(2), predictions())
        assert os.read(reader, 1 << 16).startswith(b"path,error,label_1")
    finally:
        os.close(reader)


def test_json_lines_are_ascii_and_older_ones_are_read(target: Path) -> None:
    writer = JsonLinesWriter(2)
    append(target, writer, predictions())
    lines = target.read_bytes().decode("ascii").splitlines()
    assert [json.loads(line)["path"] for line in lines[: len(NAMES)]] == NAMES
    before = already_written(target, writer)
    older = [json.dumps(json.loads(line), ensure_ascii=False) + "\n" for line in lines]
    target.write_text("".join(older), encoding="utf-8", errors="surrogateescape")
    assert already_written(target, writer) == before


@pytest.mark.parametrize(
    "line", ["[]", "1", '{"path": "x"}', '{"path": "x", "predictions": [{"label": "a"}]}',
             '{"path": "x", "predictions": [{"label": "a", "probability": "b"}]}'],
)  # fmt: skip
def test_other_json_is_no_prediction(target: Path, line: str) -> None:
    target.write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is no prediction"):
        already_written(target, JsonLinesWriter(2))


@pytest.mark.parametrize("count", [1, 2, 16, 17, 100])
@pytest.mark.parametrize(
    ("now", "is_same"), [(0.75, True), (0.74, True), (0.7, False), (float("nan"), False)]
)
def test_another_classifier_is_told_by_many_pictures(
    target: Path,
    small_classifier: Classifier,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    now: float,
    is_same: bool,
) -> None:
    """One that agrees on the first picture, as another seed or a retrained one may."""
    paths = [target.with_name(f"{number}.png") for number in range(count)]
    for path in paths:
        path.touch()
    missing = Written(str(target.with_name("gone.png")), Prediction("bee", 1.0), 2)
    broken = Written(str(paths[0]), None, 0)
    written = [Written(str(path), Prediction("ant", 0.75), 2) for path in paths]
    target.touch()
    asked: list[Path] = []

    def predict(_: object, some: list[Path], *__: object) -> Iterator[FilePrediction]:
        asked.extend(some)
        for path in some:
            sure = 0.75 if path == paths[0] and count > 1 else now
            yield FilePrediction(path, [Prediction("ant", sure)])

    monkeypatch.setattr("mobilenetv2.evaluation.prediction_table.predict_files", predict)
    if is_same:
        require_same_classifier(target, [missing, broken, *written], small_classifier)
    else:
        with pytest.raises(UserError, match="predictions of another classifier"):
            require_same_classifier(target, [missing, broken, *written], small_classifier)
    assert min(count, 9) <= len(asked) <= 16
    assert asked[0] == paths[0]
