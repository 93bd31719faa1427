"""A network in 8 bits: weights per channel, activations per tensor, scales from calibration.

Two tools do it, and which one is better depends on the network: ONNX Runtime's own, and NNCF, which
corrects the biases afterwards. Both give ONNX with quantise and dequantise operations, which every
runtime here turns into integer arithmetic.

Where they have to, weights use 7 of their 8 bits. x86 processors without VNNI add two products of
8 bits in 16, where 2 · 255 · 127 does not fit, and what is too large is cut off without a word.
"""

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.onnx_network import NORMALISED, network_model

if TYPE_CHECKING:
    import onnx

CALIBRATED_ON = 256
BATCH = 16


def calibration(classifier: Classifier, prepared: Tensor) -> list[Array]:
    """Normalised batches to calibrate on, from prepared pictures uint8 N×C×H×W."""
    few = prepared[:CALIBRATED_ON]
    return [classifier.normalize(part).contiguous().numpy() for part in few.split(BATCH)]


def float_core(classifier: Classifier) -> "onnx.ModelProto":
    """The network to be quantised, from ``normalised`` to ``logits``."""
    core = network_model(classifier, normalise=False)
    del core.graph.output[1:]
    return core


def with_onnxruntime(
    core: "onnx.ModelProto",
    batches: Sequence[Array],
    keep: Sequence[str] = (),
    bits: int = 8,
) -> "onnx.ModelProto":
    """Quantised by ONNX Runtime.

    Args:
        core: from ``normalised`` to ``logits``.
        batches: to calibrate on, float32 N×C×H×W.
        keep: names of layers that stay in float32.
        bits: that a weight uses, 8 or 7.
    """
    require("onnx", "onnxruntime")
    import tempfile
    from pathlib import Path

    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        own = onnx.ModelProto()
        own.CopyFrom(core)  # the tool moves the weights out of the model that it is given
        quantization.quantize_static(
            own,
            str(path),
            _Reader(batches),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=bits < 8,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(keep),
            extra_options={
                # The logits themselves stay as exact as they are: nothing computes with them.
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                # Bounds are means over batches: what a single pixel reaches would coarsen all.
                "CalibMovingAverage": True,
            },
        )
        return compact(onnx.load(str(path)), core)


def with_nncf(
    core: "onnx.ModelProto",
    batches: Sequence[Array],
    keep: Sequence[str] = (),
    bits: int = 8,
) -> "onnx.ModelProto":
    """Quantised by NNCF with bias correction; arguments as for ONNX Runtime.

    Activations have one scale per tensor. NNCF's own choice before depthwise convolutions is one
    per channel, for which ONNX Runtime has no integer arithmetic, and with which OpenVINO 2026.4.1
    crashes on some networks; it is no more exact where the sensitive layers stay in float32.
    """
    require("onnx", "onnxruntime", "nncf")
    os.environ.setdefault("NNCF_CI", "1")  # else NNCF reports its use to its makers
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix, QuantizationParameters

    with _quiet():
        quantised = nncf.quantize(
            core,
            nncf.Dataset(list(batches), lambda batch: {NORMALISED: batch}),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            fast_bias_correction=True,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE if bits < 8 else None,
                activations_quantization_params=QuantizationParameters(per_channel=False),
            ),
            ignored_scope=nncf.IgnoredScope(names=list(keep)) if keep else None,
        )
    return compact(quantised, core)


def compact(quantised: "onnx.ModelProto", core: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same model in fewer bytes (in place): weights as integers, nothing twice, short names.

    Args:
        quantised: with quantise and dequantise operations.
        core: what it was made from; its tensors keep their names.
    """
    from onnx import numpy_helper

    graph = quantised.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for node in list(graph.node):
        values = [constants.get(name) for name in node.input]
        if node.op_type == "QuantizeLinear" and values[0] is not None:
            axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
            constants[node.output[0]] = _as_integers(values, axis)
            graph.node.remove(node)
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) == 3:
            source, zero = constants.get(node.input[0]), constants.get(node.input[2])
            unsigned = zero is not None and zero.dtype == np.uint8  # what is meant without a zero
            if zero is not None and not zero.any() and (source is not None or unsigned):
                del node.input[2]
    _derive_bias_scales(graph, constants)
    used = {name for node in graph.node for name in node.input}
    ends = [*graph.input, *graph.output]
    kept = {name for node in core.graph.node for name in node.output} | {one.name for one in ends}
    short: dict[str, str] = {}
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name and name not in kept:
                    names[place] = short.setdefault(name, f"q{len(short)}")
        node.name = ""  # a layer is known by the tensor that it makes
        for attribute in list(node.attribute):
            if attribute.name == "kernel_shape" or (
                node.op_type == "Conv" and _is_default(attribute)
            ):
                node.attribute.remove(attribute)
    del graph.initializer[:]
    del graph.value_info[:]
    for name, array in constants.items():
        if name in used:
            graph.initializer.append(numpy_helper.from_array(array, short.get(name, name)))
    return quantised


def _derive_bias_scales(graph: "onnx.GraphProto", constants: dict[str, Array]) -> None:
    """Let the file hold no scale of a bias: it is the input's times the weight's.

    Runtimes multiply constants when they load a file, before they look for integer arithmetic.
    """
    from onnx import helper

    made = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in list(graph.node):
        sources = [made.get(name) for name in node.input]
        if node.op_type not in ("Conv", "Gemm") or len(sources) < 3 or None in sources:
            continue
        pictures, weight, bias = (source.input[1] for source in sources if source is not None)
        product = constants[pictures] * constants[weight]
        if bias in constants and np.allclose(product, constants[bias], rtol=1e-5, atol=0):
            del constants[bias]
            graph.node.insert(0, helper.make_node("Mul", [pictures, weight], [bias]))


def _is_default(attribute: "onnx.AttributeProto") -> bool:
    """Whether a convolution would have it anyway."""
    usual = {"pads": 0, "strides": 1, "dilations": 1}.get(attribute.name)
    return set(attribute.ints) == {usual} or (attribute.name == "group" and attribute.i == 1)


def _as_integers(values: Sequence[Array | None], axis: int) -> Array:
    """What QuantizeLinear makes of a constant, a scale and a zero point."""
    weight, scale, *zeros = values
    assert weight is not None
    assert scale is not None
    zero = zeros[0] if zeros and zeros[0] is not None else np.zeros_like(scale, np.uint8)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)] if scale.ndim else []
    limits = np.iinfo(zero.dtype)
    levels = np.rint(weight / scale.reshape(shape)) + zero.reshape(shape)
    integers: Array = levels.clip(limits.min, limits.max).astype(zero.dtype)
    return integers


class _Reader:
    """Gives calibration batches one by one, as ONNX Runtime wants them."""

    def __init__(self, batches: Sequence[Array]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch by the name of the input, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {NORMALISED: batch}

    def __iter__(self) -> Iterator[dict[str, Array]]:
        while (batch := self.get_next()) is not None:
            yield batch


class _quiet:  # noqa: N801 - used like contextlib's
    """Hushes the tools' remarks on their own progress."""

    def __enter__(self) -> None:
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        self._output = contextlib.redirect_stdout(io.StringIO())
        self._output.__enter__()

    def __exit__(self, *_: Any) -> None:
        self._output.__exit__(None, None, None)
        logging.disable(self._level)
