"""The whole contract as one ONNX graph: pictures as they are in, probabilities out.

The same steps as in ``contract.Prepare``, which says how and why; written out so that the graph
needs nothing newer than opset 17 and no number above 2³¹, which is where some runtimes end.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.classifier import Classifier
from mobilenetv2.runtimes import onnx_network
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.onnx_network import Graph
from mobilenetv2.shipping.contract import (
    GREY,
    LOGITS,
    PICTURES,
    PROBABILITIES,
    WEIGHT_STEPS,
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
    pixels = write("Transpose", PICTURES, perm=[0, 3, 1, 2]).cast(np.float32)
    if wanted.colour == "grey":
        weights = np.array(GREY, np.float32).reshape(1, 3, 1, 1) / 65536
        pixels = write("Floor", write("Conv", pixels, weights) + np.float32(0.5))
    sides = write("Shape", PICTURES, start=1, end=3).cast(np.int32)
    short = write("ReduceMin", sides, axes=[0], keepdims=1)
    resized = sides * wanted.resize // short
    crop = (wanted.height, wanted.width)
    down, across = (
        _resizing_matrix(write, sides.at(axis), resized.at(axis), crop[axis]) for axis in (0, 1)
    )
    # The two halves of the weights lie side by side, so that a pass is one product.
    upper, lower = write.split(
        write("MatMul", pixels, write("Transpose", across, perm=[1, 0])), 3, wanted.width
    )
    pixels = _rounded(write, upper, lower)
    upper, lower = write.split(write("MatMul", down, pixels), 2, wanted.height)
    return str(_rounded(write, upper, lower))


def _rounded(write: "Writer", upper: "Value", lower: "Value") -> "Value":
    """The sum of both halves, rounded like Pillow's; what cannot change it is dropped early."""
    lower = write("Floor", lower) * np.float32(2.0**-11)
    return write("Floor", upper + lower + np.float32(0.5))


def _resizing_matrix(write: "Writer", side: "Value", resized: "Value", crop: int) -> "Value":
    """Weights of the ``side`` pixels in each of ``crop`` pixels: float32 2·crop × side.

    First the upper halves in units of 2⁻¹¹, then the lower halves of the weights, so that
    upper + 2⁻¹¹·lower is the weight. Positions outside the resized picture weigh nothing: black.

    Args:
        write: adds to the graph.
        side: pixels of the picture along this axis, int32 of one number.
        resized: pixels after resizing.
        crop: pixels that are kept, around the middle.
    """
    extra, missing = write("Max", resized - crop, 0), write("Max", crop - resized, 0)
    # Python rounds half pixels to even, as the crop of a picture does.
    first = (extra + extra % 4 // 3) // 2 - missing // 2
    column = write("Unsqueeze", first + np.arange(crop, dtype=np.int32), np.array([1]))
    row = write("Range", 0, write("Squeeze", side), 1)
    # Pillow's triangle, in whole numbers: distances times twice the longer of both sides.
    distance = write("Abs", (row * 2 + 1) * resized - (column * 2 + 1) * side)
    triangle = write("Max", write("Max", side, resized) * 2 - distance, 0)
    inside = write("And", write("Less", column, resized), write("Less", -1, column))
    remainder = triangle * inside.cast(np.int32)
    total = write("Max", write("ReduceSum", remainder, np.array([1]), keepdims=1), 1)
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
    both = write("Concat", *halves, axis=0)
    return both.cast(np.float32) * np.float32(2.0**-11)


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

    def at(self, index: int) -> "Value":
        """One number of a vector, as a vector of one."""
        return self.writer("Gather", self, np.array([index]), axis=0)


def helper_type(dtype: Any) -> int:
    """ONNX' number of a NumPy type."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
