"""Other libraries in PyTorch's place: the same logits, and a choice that is remembered."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.errors import ConfigError, ModelFileError, UserError, WorkFailed
from mobilenetv2.network.cpp_inference import CppInference
from mobilenetv2.runtimes import copies, memory
from mobilenetv2.runtimes.engine import LIBRARIES, Engine, agrees, with_runtime
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.onnx_network import network_model
from mobilenetv2.runtimes.sessions import onnxruntime_session, openvino_core
from mobilenetv2.shipping.network_copies import make_copy

RunCli = Callable[..., tuple[int, str, str]]


def noise(classifier: Classifier, count: int = 5) -> torch.Tensor:
    wanted = classifier.preprocessing
    size = (count, wanted.channels, wanted.height, wanted.width)
    return torch.randint(
        0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize(
    ("library", "network"),
    [
        ("cpp", "mobilenetv2"),
        *product(["onnxruntime", "openvino"], ["mobilenetv2", "first-version"]),
    ],
)
@pytest.mark.parametrize("padding", ["symmetric", "keras"])
def test_the_same_logits(library: str, padding: str, network: str, compiler: None) -> None:
    for needed in LIBRARIES[library]:
        pytest.importorskip(needed)
    torch.manual_seed(0)
    wanted = Preprocessing(
        colour="rgb", height=37, width=50, resize=40, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    config = NetworkConfig(network=network, width=0.35, padding=padding)
    classifier = Classifier.create(config, wanted, ("a", "b", "c"))
    for module in classifier.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    expected = classifier.logits(noise(classifier))
    fast = with_runtime(classifier, library)
    for _ in range(2):
        for count in (5, 1):
            logits = fast.logits(noise(classifier)[:count])
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected[:count], atol=1e-5, rtol=1e-4)
    assert fast.for_inference() is fast
    assert fast.with_network(classifier.network).engine is None


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("library", ["cpp", "onnxruntime", "openvino"])
def test_threads_do_not_mix_their_pictures(
    library: str, workers: int, small_classifier: Classifier, compiler: None
) -> None:
    for needed in LIBRARIES[library]:
        pytest.importorskip(needed)
    fast = with_runtime(small_classifier, library, workers)
    pictures = noise(small_classifier, 64)
    expected = small_classifier.logits(pictures)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            parts = list(pool.map(fast.logits, pictures.split(4)))
            torch.testing.assert_close(torch.cat(parts), expected, atol=1e-5, rtol=1e-4)


def test_the_fastest_is_remembered(small_classifier: Classifier, runtime_notes: Path) -> None:
    assert memory.recall(small_classifier) == []
    memory.remember(small_classifier, "openvino-bf16", "onnxruntime")
    assert memory.recall(small_classifier) == ["openvino-bf16", "onnxruntime"]
    # Another network of the same shape: nobody knows what less than float32 does to it.
    torch.manual_seed(9)
    other = Classifier.create(
        small_classifier.config, small_classifier.preprocessing, small_classifier.labels
    )
    assert memory.recall(other) == ["onnxruntime"]
    notes = json.loads(runtime_notes.read_text())
    assert list(notes) == [memory.machine()]


@pytest.mark.parametrize("native", [False, True])
def test_bf16_only_where_the_processor_has_it(
    native: bool, small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it OpenVINO may compute in float32 all the same, and noise tell the two apart."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from mobilenetv2.shipping import benchmark

    class Core:
        real = openvino_core()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", *["BF16"] * native]

    monkeypatch.setattr("mobilenetv2.runtimes.sessions.openvino_core", Core)
    memory.remember(small_classifier, "openvino-bf16", "openvino")
    fast = memory.fastest(small_classifier, 1000)
    assert isinstance(fast.engine, Engine)
    assert fast.engine.runtime == ("openvino-bf16" if native else "openvino")
    assert bool(benchmark._absent("openvino-bf16", small_classifier)) != native
    assert benchmark._absent("openvino", small_classifier) == ""
    if not native:
        with pytest.raises(UserError, match="does not compute in bfloat16; use openvino"):
            with_runtime(small_classifier, "openvino-bf16")


@pytest.mark.parametrize("native", [False, True])
def test_our_bf16_only_where_the_processor_has_it(
    native: bool, small_classifier: Classifier, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobilenetv2.runtimes.processor.multiplies_bf16", lambda: native)
    memory.remember(small_classifier, "cpp-bf16", "cpp")
    fast = memory.fastest(small_classifier, 1000)
    assert isinstance(fast.engine, Engine)
    assert fast.engine.runtime == ("cpp-bf16" if native else "cpp")
    if native:
        pictures = noise(small_classifier, 64)
        off = (fast.logits(pictures) - small_classifier.logits(pictures)).abs()
        assert 0 < off.max() < 0.1
    else:
        with pytest.raises(UserError, match=r"does not compute in bfloat16; use cpp$"):
            with_runtime(small_classifier, "cpp-bf16")


def test_what_takes_over_where_nothing_was_measured(
    small_classifier: Classifier, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for built, worth, name in ((True, 10**12, "cpp"), (False, 1, "cpp"), (False, 10**12, None)):
        monkeypatch.setattr("mobilenetv2.network.cpp_inference.is_built", lambda built=built: built)
        monkeypatch.setattr(memory, "WORTH_COMPILING", worth)
        engine = memory.fastest(small_classifier, 1000).engine
        assert (None if engine is None else engine.runtime) == name
    memory.remember(small_classifier, "torch", "torch")
    assert memory.fastest(small_classifier, 1000).engine is None, "it was faster here"


def test_one_that_does_not_agree(
    small_classifier: Classifier, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agrees(small_classifier, "cpp")
    assert memory.fastest(small_classifier, 10**9).engine is not None
    first = CppInference.logits
    monkeypatch.setattr(CppInference, "logits", lambda *given, **more: 0.01 + first(*given, **more))
    assert not agrees(small_classifier, "cpp")
    assert memory.fastest(small_classifier, 10**9).engine is None


def test_a_network_that_the_kernels_do_not_know(
    small_classifier: Classifier, compiler: None
) -> None:
    config = NetworkConfig(network="first-version")
    other = Classifier.create(config, small_classifier.preprocessing, small_classifier.labels)
    with pytest.raises(UserError, match=r"--runtime cpp: .* alone; use torch"):
        with_runtime(other, "cpp")


def test_a_runtime_that_there_is_not(small_classifier: Classifier) -> None:
    with pytest.raises(ConfigError, match="runtime tflite: there is torch, cpp,"):
        with_runtime(small_classifier, "tflite")


@pytest.mark.parametrize(("workers", "threads"), [(1, None), (4, 1)])
def test_several_workers_compute_alone(
    workers: int, threads: int | None, small_classifier: Classifier, compiler: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[int | None] = []
    first = CppInference.logits

    def logits(self: CppInference, pictures: torch.Tensor, threads: int | None = None) -> Any:
        seen.append(threads)
        return first(self, pictures, threads)

    monkeypatch.setattr(CppInference, "logits", logits)
    with_runtime(small_classifier, "cpp", workers).logits(noise(small_classifier))
    assert seen == [threads]


def test_too_little_memory(
    small_classifier: Classifier, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(*_: Any, **__: Any) -> torch.Tensor:
        raise MemoryError("there is too little memory")

    fast = with_runtime(small_classifier, "cpp")
    assert isinstance(fast.engine, Engine)
    monkeypatch.setattr(fast.engine, "_logits", logits)
    with pytest.raises(WorkFailed, match="--runtime cpp: there is too little memory; use torch"):
        fast.logits(noise(small_classifier))


def test_back_to_pytorch(small_classifier: Classifier, compiler: None) -> None:
    fast = with_runtime(small_classifier, "cpp")
    assert with_runtime(fast, "torch").engine is None


def test_few_pictures_are_not_worth_it(small_classifier: Classifier) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    memory.remember(small_classifier, "onnxruntime", "onnxruntime")
    assert memory.fastest(small_classifier, memory.WORTH - 1).engine is None
    fast = memory.fastest(small_classifier, memory.WORTH)
    assert isinstance(fast.engine, Engine)
    assert memory.fastest(fast, 1000) is fast


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"x": 1}', "\udcff", '{"%s": {"%s": "rm -rf"}}', '{"%s": {"%s": ["onnxruntime"]}}'],
)
def test_damaged_notes_are_no_notes(
    small_classifier: Classifier, runtime_notes: Path, text: str
) -> None:
    runtime_notes.parent.mkdir(parents=True)
    if "%s" in text:
        text = text % (memory.machine(), copies.shape(small_classifier))
    runtime_notes.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert memory.recall(small_classifier) == []


def test_a_library_that_is_gone_is_not_chosen(
    small_classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.remember(small_classifier, "openvino", "openvino")
    monkeypatch.setattr(memory, "available", lambda *_: False)
    assert memory.fastest(small_classifier, 1000).engine is None


def test_the_fingerprint_sees_every_weight(small_classifier: Classifier) -> None:
    before = copies.fingerprint(small_classifier)
    small_classifier.network.to(memory_format=torch.channels_last)  # as a file is loaded
    assert copies.fingerprint(small_classifier) == before
    with torch.no_grad():
        next(iter(small_classifier.network.parameters())).view(-1)[0] += 1e-3
    assert copies.fingerprint(small_classifier) != before


def test_the_fingerprint_sees_the_normalisation(small_classifier: Classifier) -> None:
    """It is part of a copy, so a copy must not serve a classifier with another one."""
    wanted = small_classifier.preprocessing.model_copy(update={"mean": (0.41,)})
    other = replace(small_classifier, preprocessing=wanted)
    assert copies.fingerprint(other) != copies.fingerprint(small_classifier)


@pytest.mark.parametrize("runtime", sorted(copies.SUFFIXES))
def test_without_a_copy_a_message(runtime: str, small_classifier: Classifier) -> None:
    with pytest.raises(UserError, match="mobilenetv2 benchmark MODEL"):
        Engine(small_classifier, runtime)


@pytest.mark.parametrize(
    "runtime", [pytest.param("onnxruntime-int8", marks=pytest.mark.slow), "openvino-int8"]
)
def test_the_copy_is_what_runs(runtime: str, small_classifier: Classifier) -> None:
    for library in ("onnx", "onnxruntime", runtime.partition("-")[0]):
        pytest.importorskip(library)
    pictures = noise(small_classifier, 64)
    make_copy(small_classifier, runtime, pictures)
    memory.remember(small_classifier, runtime, "onnxruntime")
    fast = memory.fastest(small_classifier, 1000)
    assert isinstance(fast.engine, Engine)
    assert fast.engine.runtime == runtime
    difference = (fast.logits(pictures) - small_classifier.logits(pictures)).abs().max()
    assert 1e-4 < difference < 0.5 * small_classifier.logits(pictures).std()
    copies.copy_of(small_classifier, runtime).unlink()
    fast = memory.fastest(small_classifier, 1000)
    assert isinstance(fast.engine, Engine)
    assert fast.engine.runtime == "onnxruntime", "the fastest that is left"


def test_a_damaged_copy_is_a_message(small_classifier: Classifier) -> None:
    pytest.importorskip("onnxruntime")
    path = copies.copy_of(small_classifier, "onnxruntime-int8")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no network")
    with pytest.raises(ModelFileError, match=path.name):
        Engine(small_classifier, "onnxruntime-int8")
    memory.remember(small_classifier, "onnxruntime-int8", "torch")
    fast = memory.fastest(small_classifier, 1000)
    assert fast.engine is None, "nobody asked for that copy, and PyTorch will do"


@pytest.mark.filterwarnings("ignore")  # the converter's own
def test_litert_takes_batches_of_any_size(small_classifier: Classifier) -> None:
    pytest.importorskip("litert_torch")
    pytest.importorskip("ai_edge_litert")
    make_copy(small_classifier, "litert", noise(small_classifier))
    for workers in (1, 2):
        fast = with_runtime(small_classifier, "litert", workers)
        with ThreadPoolExecutor(workers) as pool:
            for count in (1, 5, 3):
                pictures = noise(small_classifier, count)
                expected = small_classifier.logits(pictures)
                for logits in pool.map(fast.logits, [pictures] * 2):
                    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_predict_and_evaluate_with_another_runtime(
    small_classifier: Classifier, tmp_path: Path, run_cli: RunCli
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = tmp_path / "model.safetensors"
    small_classifier.save(model)
    folder = tmp_path / "data"
    random = np.random.default_rng(0)
    for label in small_classifier.labels:
        (folder / label).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    answers = [
        run_cli(*command, "--runtime", runtime)
        for command in (("predict", model, folder), ("evaluate", model, folder))
        for runtime in ("torch", "onnxruntime")
    ]
    assert all(code == 0 and not error for code, _, error in answers)
    assert answers[0] == answers[1]
    assert answers[2] == answers[3]


def test_external_data_that_is_missing_is_a_message(
    small_classifier: Classifier, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    onnx.save(
        network_model(small_classifier, normalise=True),
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    onnxruntime_session(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileError, match=r"model\.onnx"):
        onnxruntime_session(path)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("json")
    monkeypatch.setattr("mobilenetv2.runtimes.installed.installed", lambda *_: False)
    with pytest.raises(UserError, match=r'pip install .*\[export\]"'):
        require("onnx", "openvino")
