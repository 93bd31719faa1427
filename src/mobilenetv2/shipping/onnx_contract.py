"""The whole contract as one ONNX graph: pictures as they are in, probabilities out.

The same steps as in ``contract.Prepare``, which says how and why; written out so that the graph
needs nothing newer than opset 17 and no number above 2³¹, which is where some runtimes end.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import Preprocessing
from mobilenetv2.runtimes import onnx_network
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.onnx_network import Graph
from mobilenetv2.shipping.contract import (
    GREY,
    LOGITS,
    PICTURES,
    PROBABILITIES,
    WEIGHT_STEPS,
    block_size,
    metadata,
)

if TYPE_CHECKING:
    import onnx


def contract_model(
    classifier: Classifier, core: "onnx.ModelProto | None" = None
) -> "onnx.ModelProto":
    """The exported file with preparation and probabilities around the network.

    Args:
        classifier: what is exported.
        core: the network from ``normalised`` to ``logits`` if it is not the classifier's own, such
            as a quantised one.

    Raises:
        UserError: onnx is not installed.
    """
    require("onnx")
    from onnx import TensorProto, helper

    graph = Graph()
    prepared = add_preparation(graph, classifier)
    onnx_network.add_normalisation(graph, classifier, prepared)
    if core is None:
        onnx_network.add_network(graph, classifier)
    else:
        graph.nodes += core.graph.node
        graph.constants += core.graph.initializer
    graph.node("Softmax", [LOGITS], PROBABILITIES, axis=1)
    classes = len(classifier.labels)
    entry = helper.make_tensor_value_info(PICTURES, TensorProto.UINT8, ["N", "H", "W", 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes])
        for name in (PROBABILITIES, LOGITS)
    ]
    model = onnx_network.finished(graph, [entry], outputs)
    helper.set_model_props(model, metadata(classifier))
    return model


def raw_model(classifier: Classifier, core: "onnx.ModelProto | None" = None) -> "onnx.ModelProto":
    """The network alone, from ``normalised`` to ``logits``, its expected input written down.

    Args:
        classifier: what is exported.
        core: the network if it is not the classifier's own.

    Raises:
        UserError: onnx is not installed.
    """
    model = onnx_network.network_model(classifier, normalise=False, core=core)
    from onnx import helper

    del model.graph.output[1:]
    helper.set_model_props(model, metadata(classifier, raw=True))
    return model


def add_preparation(graph: Graph, classifier: Classifier) -> str:
    """From ``pictures`` to prepared ones, float32 N×C×height×width of whole numbers 0…255."""
    wanted = classifier.preprocessing
    write = Writer(graph, "prepare")
    # The side that is resized comes first and the other one last: long rows are copied quickly.
    if wanted.colour == "rgb":
        pixels = write("Transpose", PICTURES, perm=[0, 2, 3, 1])
    else:
        pixels = write("Transpose", PICTURES, perm=[0, 3, 1, 2]).cast(np.float32)
        weights = np.array(GREY, np.float32).reshape(1, 3, 1, 1) / 65536
        pixels = write("Floor", write("Conv", pixels, weights) + np.float32(0.5))
        pixels = write("Transpose", pixels, perm=[0, 3, 1, 2])
    sides = write("Shape", PICTURES, start=1, end=3).cast(np.int32)
    short = write("ReduceMin", sides, axes=[0], keepdims=1)
    index, weight = _resizing_windows(write, sides, sides * wanted.resize // short, wanted)
    # Not taken apart with Gather and a scalar, whose axis OpenVINO (2026.4.1) does not remove in a
    # model that has layers in 8 bits.
    down, across = zip(write.split(index, 0, 1), write.split(weight, 0, 1), strict=True)
    pixels = _resized(write, pixels, *across, wanted, wanted.width)
    pixels = write("Transpose", pixels, perm=[0, 3, 2, 1])
    pixels = _resized(write, pixels, *down, wanted, wanted.height)
    return str(write("Transpose", pixels, perm=[0, 2, 1, 3]))


def _resized(
    write: "Writer",
    pixels: "Value",
    index: "Value",
    weight: "Value",
    wanted: Preprocessing,
    crop: int,
) -> "Value":
    """One pass over pixels N×side×C×M: float32 N×crop×C×M."""
    block = block_size(wanted)
    rows = -(-max(wanted.height, wanted.width) // block) * block
    index = write("Squeeze", index, np.array([0, 2]))
    windows = write("Gather", pixels, index, axis=1).cast(np.float32)
    # The two halves of the weights lie below each other, so that a pass is one product.
    both = write("MatMul", weight, write("Reshape", windows, np.array([0, 0, 0, -1])))
    upper, lower = write.split(both, 2, block)
    lower = write("Floor", lower) * np.float32(2.0**-11)
    resized = write("Floor", upper + lower + np.float32(0.5))
    resized = write("Reshape", resized, np.array([0, rows, wanted.channels, -1]))
    if rows == crop:
        return resized
    return write("Slice", resized, np.array([0]), np.array([crop]), np.array([1]))


def _resizing_windows(
    write: "Writer", sides: "Value", resized: "Value", wanted: Preprocessing
) -> tuple["Value", "Value"]:
    """Which pixels of a picture each block of pixels after cropping is made of, and their weights.

    Of both axes at once, as many blocks of each as the longer side needs. The upper halves of a
    block's weights in units of 2⁻¹¹, and below them the lower halves, so that upper + 2⁻¹¹·lower is
    the weight. Positions outside the resized picture weigh nothing: black.

    Args:
        write: adds to the graph.
        sides: height and width of the picture, int32.
        resized: both after resizing, int32.
        wanted: height and width after cropping.

    Returns:
        Positions in the picture int32 2×blocks×1×window, and weights float32
        2×blocks×2·block×window.
    """
    kept, block = np.array([wanted.height, wanted.width], np.int32), block_size(wanted)
    extra, missing = write("Max", resized - kept, 0), write("Max", write("Sub", kept, resized), 0)
    # Python rounds half pixels to even, as the crop of a picture does.
    first = (extra + extra % 4 // 3) // 2 - missing // 2
    first, side, resized = (
        write("Unsqueeze", one, np.array([1, 2, 3])) for one in (first, sides, resized)
    )
    twice = write("Max", side, resized) * 2
    lead = first + np.arange(0, kept.max(), block, dtype=np.int32).reshape(1, -1, 1, 1)
    column = lead + np.arange(block, dtype=np.int32).reshape(1, 1, -1, 1)
    # Pillow's triangle, in whole numbers: distances times twice the longer of both sides, from the
    # middle of the picture, so that they stay small for long and thin ones. A window begins before
    # the first pixel's triangle does, and reaches over the last pixel's.
    begin = ((lead * 2 + 1 - resized) * side - twice - resized) // (resized * 2)
    start = write("Max", side // 2 + begin - 1, 0)
    reach = write("Min", (side * (block - 1) + twice) // resized + 4, side)
    row = start + write("Range", 0, write("ReduceMax", reach, keepdims=0), 1)
    from_middle = (row * 2 + 1 - side) * resized
    distance = write("Abs", from_middle - (column * 2 + 1 - resized) * side)
    triangle = write("Max", twice - distance, 0)
    inside = write("And", write("Less", column, resized), write("Less", -1, column))
    inside = write("And", inside, write("Less", row, side))
    remainder = triangle * inside.cast(np.int32)
    total = write("Max", write("ReduceSum", remainder, np.array([3]), keepdims=1), 1)
    halves = []
    for steps in WEIGHT_STEPS:
        half: Value | None = None
        for bits in steps:
            shifted = remainder * 2**bits
            digit = shifted // total
            remainder = shifted - digit * total
            half = digit if half is None else half * 2**bits + digit
        assert half is not None
        halves.append(half)
    halves[1] = halves[1] + write("Less", total - 1, remainder * 2).cast(np.int32)
    weight = write("Concat", *halves, axis=2).cast(np.float32) * np.float32(2.0**-11)
    return write("Min", row, side - 1), weight


class Writer:
    """Adds operations to a graph so that they read like NumPy."""

    def __init__(self, graph: Graph, prefix: str) -> None:
        self._graph = graph
        self._prefix = prefix
        self._count = 0

    def __call__(self, kind: str, *inputs: Any, **attributes: Any) -> "Value":
        """One operation; inputs are values, names of tensors, or numbers (int32 unless typed)."""
        names = [self._named(one) for one in inputs]
        output = self._next(kind)
        self._graph.node(kind, names, output, **attributes)
        return Value(self, output)

    def split(self, value: "Value", axis: int, size: int) -> tuple["Value", "Value"]:
        """The two halves of a value, each ``size`` long."""
        sizes = self._named(np.array([size, size]))
        names = [self._next("Split"), self._next("Split")]
        self._graph.split([str(value), sizes], names, axis)
        return Value(self, names[0]), Value(self, names[1])

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}.{self._count}.{kind}"

    def _named(self, value: Any) -> str:
        if isinstance(value, Value | str):
            return str(value)
        array = np.asarray(value, np.int32) if isinstance(value, int) else np.asarray(value)
        return self._graph.constant(self._next("constant"), array)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, by name."""

    writer: Writer
    name: str

    def __str__(self) -> str:
        return self.name

    def __add__(self, other: Any) -> "Value":
        return self.writer("Add", self, other)

    def __sub__(self, other: Any) -> "Value":
        return self.writer("Sub", self, other)

    def __rsub__(self, other: Any) -> "Value":
        return self.writer("Sub", other, self)

    def __mul__(self, other: Any) -> "Value":
        return self.writer("Mul", self, other)

    def __floordiv__(self, other: Any) -> "Value":
        return self.writer("Div", self, other)

    def __mod__(self, other: Any) -> "Value":
        return self.writer("Mod", self, other)

    def cast(self, dtype: Any) -> "Value":
        """The same numbers in another type."""
        return self.writer("Cast", self, to=helper_type(dtype))


def helper_type(dtype: Any) -> int:
    """ONNX' number of a NumPy type."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
