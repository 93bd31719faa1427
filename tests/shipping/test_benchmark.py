"""Measuring side by side: what is chosen and remembered, and that measurements measure."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mobilenetv2
from mobilenetv2.command_config import BenchmarkConfig
from mobilenetv2.runtimes import memory
from mobilenetv2.shipping import benchmark
from mobilenetv2.shipping.benchmark import Measurement, Report, Timing, choose, measure

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
        measured("onnxruntime", 3, difference=1e-5),
        measured("openvino", 2, difference=0.1),  # in float32, so this is a fault
        measured("openvino-bf16", 1, agreement=0.995, difference=0.2),
        measured("openvino-int8", 0.5, agreement=1.0),  # no choice of predict's
    ]
    assert choose(all_of_them, benchmark.REMEMBERED) == "openvino-bf16"
    assert choose(all_of_them, benchmark.FLOAT32) == "onnxruntime"
    all_of_them[3] = measured("openvino-bf16", 1, agreement=0.9)
    assert choose(all_of_them, benchmark.REMEMBERED) == "onnxruntime"
    all_of_them[1] = measured("onnxruntime", 3, difference=float("nan"))
    assert choose(all_of_them, benchmark.REMEMBERED) == "torch"


def test_table_and_picture() -> None:
    rows = (measured("torch", 10), measured("onnxruntime", 2.5))
    report = Report("a processor", "runs/x", "noise", rows, ("openvino",), "onnxruntime", "notes")
    table = benchmark.table(report)
    assert table.row_count == 2
    assert list(table.columns[0].cells) == ["torch", "onnxruntime ←"]
    assert list(table.columns[5].cells) == ["1.0", "4.0"]
    figure = benchmark.figure(report)
    assert [axes.get_title() for axes in figure.axes] == ["batch 1", "batch 32"]
    assert json.loads(report.to_json())["measurements"][1]["timings"][1]["batch"] == 32


@pytest.mark.parametrize("runtime", ["torch", "torch-folded", "onnxruntime", "openvino"])
def test_measuring(runtime: str, digits_model: Path) -> None:
    for library in benchmark._NEEDS.get(runtime, ()):
        pytest.importorskip(library)
    pictures = np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8)
    timings, start, megabytes, logits = measure(runtime, digits_model, pictures, (1, 16), 0.02)
    assert [timing.batch for timing in timings] == [1, 16]
    for timing in timings:
        assert 0 < timing.median <= timing.p90 <= timing.p99
        assert timing.throughput == pytest.approx(1000 * timing.batch / timing.median)
    assert start > 0
    assert megabytes >= 0
    expected = mobilenetv2.load(digits_model).logits(torch.from_numpy(pictures)).numpy()
    assert np.abs(logits - expected).max() < 1e-4


def test_without_data_there_is_noise(digits_model: Path) -> None:
    classifier = mobilenetv2.load(digits_model)
    pictures, name = benchmark._pictures(BenchmarkConfig(model=digits_model), classifier)
    assert (name, pictures.shape, pictures.dtype) == ("noise", (256, 1, 8, 8), torch.uint8)
    found, name = benchmark._pictures(
        BenchmarkConfig(model=digits_model, verify="digits"), classifier
    )
    assert (name, len(found)) == ("digits, test set", 256)


@pytest.mark.slow
def test_the_command(digits_model: Path, tmp_path: Path, run_cli: RunCli) -> None:
    code, printed, _ = run_cli(
        "benchmark", digits_model, "--verify", "digits", "--seconds", "0.1", "--no-compiled",
        "--report", tmp_path,
    )  # fmt: skip
    assert code == 0
    report = json.loads((tmp_path / "benchmark.json").read_text())
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
    assert f"fastest: {report['winner']}" in printed
    assert report["measurements"][0]["runtime"] == "torch"
    assert memory.recall(mobilenetv2.load(digits_model)) == report["winner"]
