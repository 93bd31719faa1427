"""Measuring side by side: what is chosen and remembered, and that measurements measure."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

import mobilenetv2
from mobilenetv2 import machine_memory
from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import BenchmarkConfig
from mobilenetv2.errors import DataError, UserError, WorkFailed
from mobilenetv2.runtimes import copies, memory
from mobilenetv2.runtimes.engine import LIBRARIES
from mobilenetv2.shipping import benchmark
from mobilenetv2.shipping.benchmark import Visit, choose, measure
from mobilenetv2.shipping.benchmark_report import Measurement, Report, Timing, figure, table
from mobilenetv2.shipping.resident import Resident

RunCli = Callable[..., tuple[int, str, str]]


def measured(
    runtime: str, milliseconds: float, agreement: float = 1.0, difference: float = 0.0
) -> Measurement:
    timings = tuple(
        Timing(batch, batch * milliseconds, batch * milliseconds, batch * milliseconds, 1000.0)
        for batch in (1, 32)
    )
    return Measurement(runtime, timings, 0.1, 10.0, agreement, difference)


def test_the_fastest_that_agrees_is_chosen() -> None:
    all_of_them = [
        measured("torch", 10),
        measured("torch-folded", 8),
        measured("torch-compiled", 0.4),  # no choice of predict's
        measured("onnxruntime", 3, difference=1e-5),
        measured("openvino", 2, difference=0.1),  # in float32, so this is a fault
        measured("openvino-bf16", 1, agreement=0.995, difference=0.2),
        measured("openvino-int8", 0.5, agreement=0.99, difference=0.3),
    ]
    assert choose(all_of_them) == "openvino-int8"
    assert choose([one for one in all_of_them if one.is_float32]) == "onnxruntime"
    all_of_them[6] = measured("openvino-int8", 0.5, agreement=0.98)
    assert choose(all_of_them) == "openvino-bf16"
    all_of_them[5] = measured("openvino-bf16", 1, agreement=0.9)
    assert choose(all_of_them) == "onnxruntime"
    all_of_them[3] = measured("onnxruntime", 3, difference=float("nan"))
    assert choose(all_of_them) == "torch-folded"
    assert choose([measured("torch-folded", 1, difference=1.0)]) == "torch-folded"


def report_of(rows: Sequence[Measurement], winner: str) -> Report:
    missing = {"litert": "ai_edge_litert not installed"}
    return Report("a processor", "runs/x", "digits", tuple(rows), missing, winner, "notes")


def test_the_share_of_the_best_says_what_the_choice_gives_away() -> None:
    rows = [
        measured("torch", 10),
        measured("torch-compiled", 1),
        measured("onnxruntime", 2),
        measured("openvino-int8", 0.1, agreement=0.5),  # does not agree, so it does not count
    ]
    assert report_of(rows, "onnxruntime").shares == {1: 0.5, 32: 0.5}
    assert report_of(rows[:1] + rows[2:], "onnxruntime").shares == {1: 1.0, 32: 1.0}


def test_table_and_picture() -> None:
    rows = (measured("torch", 10), measured("onnxruntime", 2.5))
    report = report_of(rows, "onnxruntime")
    shown = table(report)
    assert shown.row_count == 2
    assert list(shown.columns[0].cells) == ["torch", "onnxruntime ←"]
    assert list(shown.columns[5].cells) == ["1.0", "4.0"]
    drawn = figure(report)
    assert [axes.get_title() for axes in drawn.axes] == ["batch 1", "batch 32", "memory"]
    assert legend_of(drawn) == ["agrees with PyTorch", "chosen"]
    assert json.loads(report.to_json())["measurements"][1]["timings"][1]["batch"] == 32


def test_the_picture_shows_why_the_fastest_was_not_chosen() -> None:
    rows = [
        measured("torch", 10),
        measured("onnxruntime", 2),
        measured("openvino-int8", 0.1, agreement=0.5),
    ]
    drawn = figure(report_of(rows, "onnxruntime"))
    assert legend_of(drawn) == [
        "agrees with PyTorch", "chosen", "answers differ too much to be chosen",
    ]  # fmt: skip
    for axes in drawn.axes:
        differs, chosen, agrees = axes.patches
        assert differs.get_hatch()
        assert not chosen.get_hatch()
        assert not agrees.get_hatch()
        assert len({bar.get_facecolor() for bar in axes.patches}) == 3


def legend_of(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_memory_is_what_was_taken_and_not_what_was_there() -> None:
    """200 MB that were given back before do not count and do not hide; 100 MB after do."""
    script = (
        "import numpy as np; from mobilenetv2.shipping.resident import Resident;"
        "gone = np.ones(25_000_000); del gone; taken = Resident(); few = taken.most();"
        "more = np.ones(12_500_000); del more; print(few, taken.most())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    few, most = map(float, printed.split())
    assert few < 10
    if sys.platform == "linux":
        assert 95 < most < 110


@pytest.mark.parametrize("runtime", ["onnxruntime-int8", "litert"])
def test_what_is_not_measured_is_told(
    runtime: str, small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "installed", lambda *_: False)
    assert re.search(
        r"not installed \(pip install .*\[", benchmark._absent(runtime, small_classifier)
    )
    assert benchmark._absent("torch", small_classifier) == ""
    monkeypatch.setattr(benchmark, "installed", lambda *_: True)
    copy = copies.copy_of(small_classifier, runtime)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"")
    assert benchmark._absent(runtime, small_classifier) == ""


class AtOnce:
    """In place of a process for each runtime: this one."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> "AtOnce":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runtimes, measured for a moment, all in the process of the test."""
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", AtOnce)
    few = {name: benchmark.RUNTIMES[name] for name in ("torch", "torch-folded", "onnxruntime-int8")}
    monkeypatch.setattr(benchmark, "RUNTIMES", few)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("\n  no working C++ compiler\nmore"),
            "RuntimeError: no working C.. compiler",
        ),
        (BrokenProcessPool("terminated abruptly"), "the process that measured it ended early; .*"),
        (MemoryError(), "MemoryError"),
        (UserError("damaged since"), "damaged since"),
    ],
)
def test_a_runtime_that_fails_leaves_the_others_their_figures(
    digits_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    failing = "torch-compiled"

    def visited(name: str, *arguments: Any) -> Visit:
        if name == failing:
            raise error
        return measure(name, *arguments)

    monkeypatch.setattr(benchmark, "measure", visited)
    monkeypatch.setattr(benchmark, "_make_copies", lambda *_: None)
    few = dict.fromkeys(("torch", "torch-folded", failing), benchmark.RUNTIMES["torch"])
    monkeypatch.setattr(benchmark, "RUNTIMES", few)
    config = BenchmarkConfig(model=digits_model, seconds=0.01, rounds=1)
    classifier = mobilenetv2.load(digits_model)
    report = benchmark.run(config, classifier, Console(quiet=True))
    assert [one.runtime for one in report.measurements] == ["torch", "torch-folded"]
    assert list(report.missing) == [failing]
    assert re.fullmatch(words, report.missing[failing])
    failing = "torch"
    with pytest.raises(WorkFailed, match=f"^torch could not be measured: {words}"):
        benchmark.run(config, classifier, Console(quiet=True))


def test_an_error_that_cannot_leave_its_process_comes_as_words(
    digits_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.compile's does, which keeps a frame."""

    class CompileError(Exception):
        def __init__(self, frame: object) -> None:
            super().__init__("no compiler\nmore")
            self.frame = frame

    def failing(_: Classifier) -> Any:
        raise CompileError(sys._getframe())

    monkeypatch.setitem(benchmark.RUNTIMES, "torch-compiled", failing)
    pictures = np.zeros((2, 1, 8, 8), np.uint8)
    with pytest.raises(WorkFailed) as error:
        measure("torch-compiled", digits_model, pictures, (1,), 0.01, True)
    assert str(pickle.loads(pickle.dumps(error.value))) == "CompileError: no compiler"


def test_memory_that_the_system_does_not_tell_is_left_out() -> None:
    rows = tuple(
        dataclasses.replace(measured(name, 2), memory=None) for name in ("torch", "onnxruntime")
    )
    report = Report("a machine", "a model", "digits", rows, {}, "onnxruntime", "a file")
    assert len(figure(report).axes) == 2  # the batch sizes
    written = Console(width=200, record=True, quiet=True)
    written.print(table(report))
    assert json.loads(report.to_json())["measurements"][0]["memory"] is None


def test_without_unix_no_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither /proc nor the module that tells elsewhere."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(machine_memory, "Path", lambda name: Path("/nowhere") / name.strip("/"))
    assert Resident().most() is None


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_noise_makes_no_8_bit_copy_and_replaces_none(digits_model: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    classifier = mobilenetv2.load(digits_model)
    copy = copies.copy_of(classifier, "onnxruntime-int8")

    def measure_on(verify: str | None) -> Report:
        config = BenchmarkConfig(model=digits_model, verify=verify, seconds=0.01, rounds=1)
        return benchmark.run(config, classifier, Console(stderr=True, width=500))

    report = measure_on(None)
    assert "--verify" in report.missing["onnxruntime-int8"]
    assert not copy.exists()
    assert measure_on("digits").missing == {}
    made, noted = copy.read_bytes(), "onnxruntime-int8"
    memory.remember(classifier, noted, "torch")
    report = measure_on(None)
    assert report.missing == {}, "the copy that is there is measured"
    assert copy.read_bytes() == made
    assert memory.recall(classifier) == [noted, "torch"]
    assert report.stays == noted
    copy.write_bytes(b"damaged")
    report = measure_on(None)
    assert copy.name in report.missing[noted]
    assert [one.runtime for one in report.measurements] == ["torch", "torch-folded"]


@pytest.mark.parametrize("runtime", ["torch", "torch-folded", "onnxruntime", "openvino"])
def test_measuring(runtime: str, digits_model: Path) -> None:
    for library in LIBRARIES.get(runtime, ()):
        pytest.importorskip(library)
    pictures = np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8)
    visit = measure(runtime, digits_model, pictures, (1, 16), 0.02, answers=True)
    assert len(visit.milliseconds) == 2
    for taken in visit.milliseconds:
        assert len(taken) >= benchmark.FEWEST
        assert min(taken) > 0
    assert visit.start > 0
    assert visit.memory >= 0
    expected = mobilenetv2.load(digits_model).logits(torch.from_numpy(pictures)).numpy()
    assert np.abs(visit.logits - expected).max() < 1e-4
    assert measure(runtime, digits_model, pictures, (1,), 0.01, answers=False).logits is None


def test_of_each_figure_the_median_of_the_rounds_counts() -> None:
    logits = np.array([[1.0, 2.0], [2.0, 1.0]])
    hundred = tuple(np.arange(101.0))
    slow = Visit(((4.0, 5.0, 6.0), (400.0,)), 3.0, 10.0, logits)
    quick = Visit(((1.0,) * 50, hundred), 1.0, 12.0, None)
    third = Visit(((2.0, 2.0), (60.0, 60.0)), 1.5, 11.0, None)
    one = benchmark._measurement("onnxruntime", [slow, quick, third], (1, 32), logits[::-1] + 0.5)
    assert [timing.batch for timing in one.timings] == [1, 32]
    assert [timing.median for timing in one.timings] == [2.0, 60.0]
    assert (one.timings[1].p90, one.timings[1].p99) == (90.0, 99.0)
    assert one.timings[1].throughput == pytest.approx(1000 * 32 / 60)
    assert (one.start, one.memory, one.agreement, one.difference) == (3.0, 12.0, 0.0, 1.5)


@pytest.mark.usefixtures("in_this_process")
def test_runtimes_are_visited_by_turns(
    digits_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy that is damaged in the second round is not visited in the third, and is told."""
    asked: list[tuple[str, float, bool]] = []

    def visited(name: str, *arguments: Any) -> Visit:
        *_, seconds, answers = arguments
        asked.append((name, seconds, answers))
        if asked.count((name, seconds, False)) == 1 and name == "onnxruntime-int8":
            raise UserError("damaged since")
        return measure(name, *arguments)

    monkeypatch.setattr(benchmark, "measure", visited)
    monkeypatch.setattr(benchmark, "_make_copies", lambda *_: None)
    monkeypatch.setattr(benchmark, "_absent", lambda *_: "")
    few = dict.fromkeys(("torch", "torch-folded", "onnxruntime-int8"), benchmark.RUNTIMES["torch"])
    monkeypatch.setattr(benchmark, "RUNTIMES", few)
    config = BenchmarkConfig(model=digits_model, seconds=0.03, rounds=3)
    console = Console(stderr=True, width=500)
    report = benchmark.run(config, mobilenetv2.load(digits_model), console)
    assert [name for name, *_ in asked] == [*few, *few, "torch", "torch-folded"]
    assert [seconds for _, seconds, _ in asked] == pytest.approx(8 * [0.01])
    assert [answers for *_, answers in asked] == 3 * [True] + 5 * [False]
    assert [one.runtime for one in report.measurements] == ["torch", "torch-folded"]
    assert report.missing == {"onnxruntime-int8": "damaged since"}
    assert "round 3 of 3: torch …" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_run_whose_data_is_elsewhere(
    run_without_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    classifier = mobilenetv2.load(run_without_data)

    def measure_on(verify: str | None) -> tuple[Report, str]:
        config = BenchmarkConfig(model=run_without_data, verify=verify, seconds=0.01, rounds=1)
        report = benchmark.run(config, classifier, Console(stderr=True, width=500))
        return report, capsys.readouterr().err

    report, told = measure_on(None)
    assert report.data == "noise"
    assert "compared on noise" in told
    assert "gone: neither a folder" in told
    report, told = measure_on("digits")
    assert (report.data, report.missing) == ("digits, test set", {})
    assert "calibrated on the pictures of digits" in told
    with pytest.raises(DataError, match="nowhere"):
        measure_on("nowhere")


def test_no_batch_size_is_no_request(digits_model: Path, run_cli: RunCli) -> None:
    code, printed, error = run_cli("benchmark", digits_model, "--batch-sizes")
    assert (code, printed) == (2, "")
    assert "batch" in error
    assert "Traceback" not in error


def test_without_data_there_is_noise(digits_model: Path) -> None:
    classifier, console = mobilenetv2.load(digits_model), Console(quiet=True)
    pictures, name = benchmark._pictures(BenchmarkConfig(model=digits_model), classifier, console)
    assert (name, pictures.shape, pictures.dtype) == ("noise", (512, 1, 8, 8), torch.uint8)
    found, name = benchmark._pictures(
        BenchmarkConfig(model=digits_model, verify="digits"), classifier, console
    )
    assert (name, len(found)) == ("digits, test set", 359)


@pytest.mark.slow
def test_the_command(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, runtime_notes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MOBILENETV2_CACHE", str(runtime_notes.parent))  # rows are other processes
    code, printed, error = run_cli(
        "benchmark", digits_model, "--verify", "digits", "--seconds", "0.1", "--no-compiled",
        "--report", tmp_path,
    )  # fmt: skip
    assert code == 0, error
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    assert f"fastest: {report['winner']}" in printed
    assert report["measurements"][0]["runtime"] == "torch"
    noted = benchmark.PREDICTED[report["winner"]]
    classifier = mobilenetv2.load(digits_model)
    assert memory.recall(classifier)[0] == noted
    assert report["shares"]["32"] == 1, "without torch-compiled, every row can be chosen"
    fast = memory.fastest(classifier, 1000)
    assert getattr(fast.engine, "runtime", "torch") == noted
