"""The ladder: each change to the weights against what it may change, and the climb itself."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.runtimes.processor import weight_bits
from mobilenetv2.runtimes.sessions import openvino_core, openvino_session
from mobilenetv2.shipping import ladder
from mobilenetv2.shipping.equalise import equalised
from mobilenetv2.shipping.export import FORMATS
from mobilenetv2.shipping.formats import Content
from mobilenetv2.shipping.held_out import HeldOut, held_out
from mobilenetv2.shipping.int8 import as_delivered
from mobilenetv2.shipping.openvino_file import OpenVinoFormat
from mobilenetv2.shipping.proof import Comparison, Threshold
from mobilenetv2.shipping.quantize import calibration, float_core, with_nncf, with_onnxruntime
from mobilenetv2.shipping.train_rounded import trained_with_rounding
from mobilenetv2.shipping.weight_grid import round_weight

RunCli = Callable[..., tuple[int, str, str]]
FLOOR = Threshold(None, 0.98, 0.005)


@pytest.fixture
def batches(small_classifier: Classifier) -> list[np.ndarray]:
    pictures = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)
    return calibration(small_classifier, pictures)


def test_equalising_changes_weights_but_no_logits(
    small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    plain = small_classifier.for_inference()
    even = equalised(small_classifier, batches)
    changed = [
        name
        for (name, one), other in zip(
            plain.network.state_dict().items(), even.network.state_dict().values(), strict=True
        )
        if not torch.equal(one, other)
    ]
    assert len(changed) > 10
    for batch in batches:
        with torch.inference_mode():
            inputs = torch.from_numpy(batch)
            torch.testing.assert_close(
                even.network(inputs), plain.network(inputs), atol=1e-4, rtol=1e-4
            )


def test_equalised_channels_reach_their_range(
    small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    def spread(classifier: Classifier) -> float:
        layer = classifier.network.get_submodule("features.5.conv.0.2")
        highest: list[torch.Tensor] = []
        layer.register_forward_hook(lambda _, __, output: highest.append(output.amax((0, 2, 3))))
        with torch.inference_mode():
            for batch in batches:
                classifier.network(torch.from_numpy(batch))
        most = torch.stack(highest).amax(0)
        return float((most[most > 0.1] / most.max()).median())

    assert spread(equalised(small_classifier, batches)) >= spread(small_classifier.for_inference())


def test_trained_with_rounding(small_classifier: Classifier, batches: list[np.ndarray]) -> None:
    before = {name: one.clone() for name, one in small_classifier.network.state_dict().items()}
    tuned = trained_with_rounding(small_classifier, small_classifier, batches, steps=3)
    for name, one in small_classifier.network.state_dict().items():
        assert torch.equal(one, before[name]), "the classifier itself must not change"
    for module in tuned.network.modules():
        assert "Rounded" not in type(module).__name__
        if isinstance(module, torch.nn.Conv2d):
            levels = module.weight.flatten(1) / module.weight.flatten(1).abs().amax(1)[:, None]
            steps = levels * 127
            assert torch.allclose(steps, steps.round(), atol=1e-2)
    inputs = torch.from_numpy(batches[0])
    with torch.inference_mode():
        difference = tuned.network(inputs) - small_classifier.for_inference().network(inputs)
    assert 0 < difference.abs().max() < 1


def test_the_teacher_is_whole(
    small_classifier: Classifier, batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last rung starts from compensated weights, and learns from the float32 network."""
    seen: dict[str, Classifier] = {}

    def train(start: Classifier, teacher: Classifier, *_: Any) -> Classifier:
        seen.update(start=start, teacher=teacher)
        raise EOFError

    monkeypatch.setattr(ladder, "with_onnxruntime", lambda *_: None)
    monkeypatch.setattr(ladder, "quantisers", dict)
    monkeypatch.setattr(ladder, "KEPT", ())
    monkeypatch.setattr(ladder, "trained_with_rounding", train)
    with pytest.raises(EOFError):
        for attempt in ladder._attempts(small_classifier, batches):
            list(attempt)
    assert seen["teacher"] is small_classifier
    weight = seen["start"].network.get_submodule("features.18.0").weight
    torch.testing.assert_close(round_weight(weight, weight_bits()), weight, rtol=0, atol=1e-6)


def test_a_rung_is_judged_with_its_preparation(
    small_classifier: Classifier, batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the file is delivered, and timed alone."""
    pictures = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    held = HeldOut(
        "x", LabelledPictures(pictures, torch.zeros(64, dtype=torch.int64)),
        np.zeros((64, 16, 16, 3), np.uint8), 16,
    )  # fmt: skip
    seen: list[tuple[bool, str, tuple[int, ...]]] = []

    def opened(core: Any, *, raw: bool) -> Any:
        def run(inputs: np.ndarray) -> dict[str, np.ndarray]:
            seen.append((raw, str(inputs.dtype), inputs.shape[1:]))
            return {"logits": np.zeros((len(inputs), 3), np.float32)}

        return run

    monkeypatch.setattr(ladder, "_attempts", lambda *_: iter([iter([("one", None)])]))
    ladder.climb(small_classifier, held, batches, FLOOR, False, opened, lambda _: 0.2)
    assert set(seen) == {(False, "uint8", (16, 16, 3)), (True, "float32", (1, 16, 16))}
    assert [raw for raw, *_ in seen[:2]] == [False] * 2


def test_a_layer_that_suffers_moves_ahead(
    small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    """A channel with one huge weight takes the levels from its others."""
    ruined = small_classifier.for_inference()
    layer = ruined.network.get_submodule("features.3.conv.1.0")
    with torch.no_grad():
        layer.weight[:, :, 0, 0] = 100 * layer.weight.abs().amax()
    inputs = np.concatenate(batches)
    before = ruined.network(torch.from_numpy(inputs))
    names = ladder.sensitive_layers(ruined, batches)
    usual = ladder.sensitive_layers(small_classifier, batches)
    assert names.index("features.3.conv.1.0") < usual.index("features.3.conv.1.0")
    convolutions = [m for m in ruined.network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(names) == len(convolutions)
    assert torch.equal(ruined.network(torch.from_numpy(inputs)), before)


def test_no_scale_is_stored_twice(
    small_classifier: Classifier, batches: list[np.ndarray], tmp_path: Path
) -> None:
    """Biases take their scale from input and weight; ONNX Runtime still computes in integers."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import numpy_helper

    model = with_onnxruntime(float_core(small_classifier), batches)
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        integers, scale = made[node.input[2]].input[:2]
        assert constants[integers].dtype == np.int32
        assert scale not in constants
        assert made[scale].op_type == "Mul"
    assert made["logits"].op_type == "Gemm"

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == len(convolutions)
    logits = session.run(["logits"], {"normalised": np.concatenate(batches)})[0]
    with torch.inference_mode():
        exact = small_classifier.for_inference().network(torch.from_numpy(np.concatenate(batches)))
    assert np.abs(logits - exact.numpy()).max() < 0.5 * exact.std()


@pytest.mark.parametrize("tool", ["onnxruntime", pytest.param("nncf", marks=pytest.mark.slow)])
def test_no_sum_overflows_on_old_processors(
    tool: str, small_classifier: Classifier, batches: list[np.ndarray]
) -> None:
    """x86 without VNNI adds two products of an activation, up to 255, and a weight in 16 bits.

    NNCF lets depthwise convolutions be: they add nothing across channels, so not in pairs either.
    """
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip(tool)
    from onnx import numpy_helper

    def largest(model: Any) -> int:
        constants = [numpy_helper.to_array(one) for one in model.graph.initializer]
        weights = [one for one in constants if one.dtype == np.int8 and one.shape[1:2] > (1,)]
        return max(int(np.abs(one.astype(int)).max()) for one in weights)

    core = float_core(small_classifier)
    quantise = {"onnxruntime": with_onnxruntime, "nncf": with_nncf}[tool]
    assert 2 * 255 * largest(quantise(core, batches, bits=7)) < 2**15
    assert largest(quantise(core, batches)) == 127


def test_one_constant_for_all_scales(
    small_classifier: Classifier, batches: list[np.ndarray], tmp_path: Path
) -> None:
    """OpenVINO's file is shorter for it, answers alike, and is computed in integers still."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    core = with_onnxruntime(float_core(small_classifier), batches)
    content = Content(small_classifier, raw=True, precision="int8", core=core)
    path = OpenVinoFormat().write(content, tmp_path, "joined")
    read = openvino_core().read_model(path)
    kinds = Counter(operation.get_type_name() for operation in read.get_ordered_ops())
    assert kinds["VariadicSplit"] == 2
    compiled = openvino_core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    run = [one.get_rt_info() for one in compiled.get_runtime_model().get_ordered_ops()]
    layers = [one["runtimePrecision"].astype(str) for one in run
              if one["layerType"].astype(str) == "Convolution"]  # fmt: skip
    assert layers.count("u8") > len(layers) - 3
    inputs = np.concatenate(batches)
    expected = openvino_session(core.SerializeToString())(inputs)["logits"]
    difference = np.abs(openvino_session(path)(inputs)["logits"] - expected)
    assert difference.mean() < 0.02 * expected.std()


def test_the_ladder_judges_the_file_and_not_the_network_in_it(
    small_classifier: Classifier, batches: list[np.ndarray], tmp_path: Path
) -> None:
    """Writing OpenVINO's rounds scales: a label may hang on it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    core = with_onnxruntime(float_core(small_classifier), batches)
    content = Content(small_classifier, precision="int8")
    inputs = np.concatenate(batches)
    form = OpenVinoFormat()
    judged = as_delivered(form, content, tmp_path)
    answers = [judged(core, raw=True)(inputs)["logits"] for _ in range(2)]
    file = form.write(replace(content, core=core, raw=True), tmp_path, "file")
    assert (answers[0] == form.open(file)(inputs)["logits"]).all()
    assert (answers[0] == answers[1]).all()
    assert (answers[0] != openvino_session(core.SerializeToString())(inputs)["logits"]).any()


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
@pytest.mark.parametrize("colour", [pytest.param("grey", marks=pytest.mark.slow), "rgb"])
def test_8_bits_change_nothing_in_the_preparation(
    form: str, colour: str, small_classifier: Classifier, tmp_path: Path
) -> None:
    """A runtime that rewrites a network in 8 bits meets the preparation too."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip(form)
    channels = {"grey": 1, "rgb": 3}[colour]
    changes = {"colour": colour, "mean": (0.4,) * channels, "std": (0.3,) * channels}
    wanted = small_classifier.preprocessing.model_copy(update=changes)
    classifier = Classifier.create(NetworkConfig(width=0.1), wanted, ("ant", "bee"))
    learned = torch.randint(0, 256, (64, channels, 16, 16), dtype=torch.uint8)
    core = with_onnxruntime(float_core(classifier), calibration(classifier, learned))
    content = Content(classifier, precision="int8", core=core)
    whole, alone = (
        FORMATS[form].open(FORMATS[form].write(replace(content, raw=raw), tmp_path, f"raw-{raw}"))
        for raw in (False, True)
    )
    for size in [(16, 16), (50, 31), (7, 90)]:
        pictures = np.random.default_rng(0).integers(0, 256, (5, *size, 3), dtype=np.uint8)
        prepared = torch.stack([classifier.prepare(one) for one in pictures])
        expected = alone(classifier.normalize(prepared).contiguous().numpy())["logits"]
        np.testing.assert_allclose(whole(pictures)["logits"], expected, rtol=0, atol=1e-5)


def test_scales_that_float16_does_not_hold_stay(
    small_classifier: Classifier, batches: list[np.ndarray], tmp_path: Path
) -> None:
    """A channel of tiny weights loses no digits; the other layers are joined nevertheless."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    core = with_onnxruntime(float_core(small_classifier), batches)
    scales = [
        one for one in core.graph.initializer
        if one.data_type == onnx.TensorProto.FLOAT and one.dims[:] and one.dims[0] > 4
    ]  # fmt: skip
    tiny = [3e-6, 7e-9, 3e-9]
    values = onnx.numpy_helper.to_array(scales[0]).copy()
    values[: len(tiny)] = tiny
    scales[0].CopyFrom(onnx.numpy_helper.from_array(values, scales[0].name))
    content = Content(small_classifier, raw=True, precision="int8", core=core)
    path = OpenVinoFormat().write(content, tmp_path, "tiny")
    read = openvino_core().read_model(path).get_ordered_ops()
    constants = [one for one in read if one.get_type_name() == "Constant"]
    floats = [one.data.ravel() for one in constants if one.get_element_type().is_real()]
    assert any(np.allclose(one[: len(tiny)], tiny, rtol=2**-11, atol=0) for one in floats
               if one.size == values.size)  # fmt: skip
    joined = [one for one in floats if one.dtype == np.float16 and one.size > values.size]
    assert len(joined) == 2
    assert min(np.abs(one[one != 0]).min() for one in joined) >= 2**-14


# ------------------------------------------------------------------------------ the climb


def rung(
    name: str, hits: int, agreement: float = 0.99, error: float = 0.1, share: float = 0.26,
    largest: float = 1.0,
) -> ladder.Rung:  # fmt: skip
    compared = Comparison(1000, largest, error, agreement, 950, hits, 0, 950 - hits)
    return ladder.Rung(name, compared, share, 1.0, None)


def test_what_holds() -> None:
    assert rung("a", 950).holds(FLOOR)
    assert rung("a", 945).holds(FLOOR)
    assert not rung("a", 944).holds(FLOOR)
    assert "0.50%" in [*ladder.table([rung("a", 945)], FLOOR).columns[2].cells]
    rungs = [rung("a", 900), rung("b", 950, agreement=0.9), rung("c", 945, share=0.31)]
    words = [*ladder.table(rungs, FLOOR).columns[-1].cells]
    assert words == ["accuracy too low", "labels below 98%", "holds, too large, taken"]
    broken = ladder.table([rung("a", 950, largest=math.nan), rung("b", 950)], FLOOR)
    assert [*broken.columns[-1].cells] == ["logits not finite", "holds, taken"]
    assert len(ladder.figure([rung("a", 945), rung("b", 900)], FLOOR).axes) == 1


def test_what_is_better() -> None:
    """The floor in a small file, then the margin, then the floor, then the nearer logits."""
    best_first = [
        rung("half of the allowance is left", 948, error=0.3),
        rung("holds, and is near", 945, agreement=0.985, error=0.1),
        rung("holds, and was lucky", 952, agreement=0.985, error=0.2),
        rung("half is left, and the file is large", 948, error=0.05, share=0.5),
        rung("half is left, and the file is less large", 948, error=0.06, share=0.31),
        rung("holds, but the file is large", 945, agreement=0.985, error=0.02, share=0.5),
        rung("near, but too low", 944, error=0.01),
    ]
    assert sorted(best_first, key=lambda one: one.worth(FLOOR), reverse=True) == best_first
    assert [one.fits for one in best_first] == [*map(bool, (1, 1, 1, 0, 0, 0, 1))]
    assert [one.holds_well(FLOOR) for one in best_first] == [*map(bool, (1, 0, 0, 1, 1, 0, 0))]


def test_the_climb_ends_where_the_floor_holds(
    small_classifier: Classifier, batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pictures = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8)
    truth = small_classifier.logits(pictures).argmax(1)
    held = HeldOut("x", LabelledPictures(pictures, truth), np.zeros((64, 16, 16, 3), np.uint8), 16)
    reference = small_classifier.for_inference()

    class Core:
        """Answers wrongly for so many pictures."""

        def __init__(self, wrong: int) -> None:
            self.wrong = wrong

    def open_core(core: Any, *, raw: bool) -> Any:
        state = {"done": 0}

        def run(inputs: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                logits = reference.network(torch.from_numpy(inputs)).numpy().copy()
            for row in range(len(logits)):
                if state["done"] < core.wrong:
                    logits[row] = -logits[row]
                    state["done"] += 1
            return {"logits": logits}

        return run

    def attempts(*_: Any) -> Iterator[Any]:
        yield iter([("a", Core(9)), ("b", Core(5))])
        yield iter([("c", Core(0)), ("d", Core(7))])
        raise AssertionError("nothing more is tried once the floor holds")

    monkeypatch.setattr(ladder, "_attempts", attempts)
    told: list[str] = []
    rungs = ladder.climb(
        small_classifier, held, batches, FLOOR, True, open_core, lambda core: 0.26,
        lambda one: told.append(one.name),
    )  # fmt: skip
    assert told == ["a", "b", "c", "d"]
    assert [one.name for one in rungs] == ["a", "b", "d", "c"]
    assert [one.comparison.hits for one in rungs][-1] == 64
    assert rungs[-1].holds(FLOOR)


def test_what_gives_no_numbers_is_said(
    small_classifier: Classifier, tmp_path: Path, run_cli: RunCli, picture_folder: Any
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    with torch.no_grad():
        next(small_classifier.network.parameters()).fill_(float("nan"))
    small_classifier.save(tmp_path / "m.safetensors")
    data = picture_folder(classes=small_classifier.labels, mode="L", count=2)
    code, _, error = run_cli("export", tmp_path / "m.safetensors", "--int8", "--verify", data)
    assert code == 1
    assert "not all numbers" in error
    assert not list(tmp_path.glob("*.onnx"))


Tried = tuple[float, float]
"""Share of the float32 file, and error of the logits; above 1, all labels are wrong."""


@pytest.mark.parametrize(
    ("attempts", "count", "taken", "note"),
    [
        pytest.param([[(0.28, 0.2)]], 1, (0.28, 0.2), None, id="small"),
        pytest.param([[(0.28, 0.2), (0.31, 0.1)]], 2, (0.28, 0.2), None, id="one is small"),
        pytest.param([[(0.31, 0.1), (0.28, 0.2)]], 2, (0.28, 0.2), None, id="the second is small"),
        pytest.param(
            [[(0.34, 0.2), (0.45, 0.1)], [(0.4, 0.0)]], 2, (0.45, 0.1),
            "0.450 × float32: larger than 0.30; the smallest that was tried has 0.340",
            id="none can be small",
        ),
        pytest.param(
            [[(0.34, 0.1)]], 1, (0.34, 0.1),
            "0.340 × float32: larger than 0.30; the smallest that was tried has 0.340",
            id="the smallest is too large",
        ),
        pytest.param(
            [[(0.28, 9.0)], [(0.31, 0.1)], [(0.45, 0.2)]], 3, (0.31, 0.1),
            "0.310 × float32: larger than 0.30; none that was tried within that kept the floor",
            id="small ones are wrong",
        ),
        pytest.param(
            [[(0.28, 9.0), (0.31, 0.1)], [(0.29, 0.3)], [(0.26, 0.0)]], 3, (0.29, 0.3), None,
            id="a small one comes later",
        ),
        pytest.param([[(0.34, 9.0)], [(0.29, 0.3)]], 2, (0.29, 0.3), None, id="small after all"),
    ],
)  # fmt: skip
def test_size_counts_where_it_can_be_kept(
    attempts: Sequence[Sequence[Tried]],
    count: int,
    taken: Tried,
    note: str | None,
    small_classifier: Classifier,
    batches: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is taken, after how many rungs, and what the certificate says of it."""
    pictures = torch.zeros(64, 1, 16, 16, dtype=torch.uint8)
    with torch.inference_mode():
        exact = small_classifier.logits(pictures).numpy()
    held = HeldOut(
        "x", LabelledPictures(pictures, torch.from_numpy(exact.argmax(1))),
        np.zeros((64, 16, 16, 3), np.uint8), 16,
    )  # fmt: skip

    class Core:
        def __init__(self, share: float, error: float) -> None:
            self.share, self.error = share, error

    def open_core(core: Any, *, raw: bool) -> Any:
        error = core.error

        def run(inputs: np.ndarray) -> dict[str, np.ndarray]:
            wrong = -exact if error > 1 else exact + np.float32(error)
            return {"logits": wrong[: len(inputs)]}

        return run

    every = [[(f"{one}", Core(*one)) for one in attempt] for attempt in attempts]
    monkeypatch.setattr(ladder, "_attempts", lambda *_: iter([iter(one) for one in every]))
    rungs = ladder.climb(
        small_classifier, held, batches, FLOOR, True, open_core,
        lambda core: core.share,  # type: ignore[attr-defined]
    )  # fmt: skip
    assert [len(rungs), rungs[-1].name] == [count, str(taken)]
    assert ladder.size_note(rungs) == note


def test_layers_are_ranked_with_the_bits_that_are_used(
    small_classifier: Classifier, batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def rank(weight: torch.Tensor, bits: int = 8) -> torch.Tensor:
        used.append(bits)
        return round_weight(weight, bits)

    monkeypatch.setattr(ladder, "weight_bits", lambda: 7)
    monkeypatch.setattr(ladder, "round_weight", rank)
    monkeypatch.setattr(ladder, "compensated", lambda even, *_: even)
    ways = ladder._attempts(small_classifier, batches)
    for _ in range(4):
        next(ways)
    assert set(used) == {7}


# --------------------------------------------------------------------------- the real thing


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_digits_in_8_bits(form: str, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    run = tmp_path / "run"
    assert run_cli("train", "digits", "--epochs", 8, "--width", 0.5, "--fast-ops", "off",
                   "--out", run, "--quiet")[0] == 0  # fmt: skip
    code, printed, error = run_cli("export", run, "--format", form, "--int8", "--max-drop", 0.01)
    assert (code, error) == (0, "")
    assert "taken" in printed
    certificate = next(run.glob("*.certificate.json")).read_text()
    import json

    figures = json.loads(certificate)
    assert figures["comparison"]["agreement"] >= 0.98
    # With the resizing around it. OpenVINO's .xml takes 0.2 megabytes, whatever the weights take.
    most = {"onnx": 0.31, "openvino": 0.42}[form]
    assert figures["size"] <= most * figures["reference_size"]
    assert next(run.glob("*.ladder.png")).stat().st_size > 5000


def test_the_file_holds_what_was_chosen(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantised network itself, and fewer bytes, whatever it is worth."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ladder, "installed", lambda *_: False)  # ONNX Runtime's tool is enough
    monkeypatch.setattr("mobilenetv2.shipping.int8.threshold", lambda *_: Threshold(None, 0.0, 1.0))
    monkeypatch.setattr(
        "mobilenetv2.shipping.export.threshold", lambda *_: Threshold(None, 0.0, 1.0)
    )
    code, printed, error = run_cli(
        "export", digits_model, "--int8", "--verify", "digits", "--out", tmp_path
    )
    assert (code, error) == (0, "")
    assert "taken" in printed
    model = onnx.load(tmp_path / "digits-int8.onnx")
    assert "DequantizeLinear" in {node.op_type for node in model.graph.node}
    figures = json.loads((tmp_path / "digits-int8.onnx.certificate.json").read_text())
    share = f"{figures['size'] / figures['reference_size']:.3f}"
    notes = [one for one in figures["notes"] if "larger than" in one]
    assert notes == [
        f"{share} × float32: larger than 0.30; the smallest that was tried has {share}"
    ]
    assert figures["size"] < 0.7 * figures["reference_size"]
    assert figures["comparison"]["largest_difference"] > 0
    assert (tmp_path / "digits-int8.onnx.ladder.png").stat().st_size > 5000


def test_a_floor_that_cannot_be_kept(
    digits_model: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def attempts(classifier: Classifier, _: Any) -> Iterator[Any]:
        network = classifier.for_inference().network
        network.get_submodule("classifier.1").weight.data.neg_()
        yield iter([("all wrong", float_core(classifier.with_network(network)))])

    monkeypatch.setattr(ladder, "_attempts", attempts)
    code, printed, error = run_cli(
        "export", digits_model, "--int8", "--verify", "digits", "--out", tmp_path
    )
    assert code == 1
    assert "all wrong" in printed
    assert "no way to quantise keeps the floor" in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_data_is_elsewhere(
    run_without_data: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        ladder, "_attempts", lambda one, _: iter([iter([("not rounded", float_core(one))])])
    )
    command = ("export", run_without_data, "--int8")
    code, _, error = run_cli(*command)
    assert code == 2
    assert "the pictures of its run cannot be used here; name others with --verify" in error
    code, _, error = run_cli(*command, "--verify", "digits")
    assert (code, error) == (0, "")
    figures = json.loads((run_without_data / "model-int8.onnx.certificate.json").read_text())
    (note,) = [one for one in figures["notes"] if one.startswith("calibrated")]
    assert "gone: neither a folder" in note


def test_pictures_that_choose_and_pictures_that_prove(digits_model: Path) -> None:
    found = held_out(mobilenetv2.load(digits_model), digits_model, "digits", None)
    assert len(found) == 359
    some = found.select(torch.tensor([3, 1]))
    assert np.array_equal(some.originals[0][..., 0], some.prepared.pictures[0, 0].numpy())
    assert some.labels.tolist() == [found.labels[3], found.labels[1]]
