"""Less to read for OpenVINO: a quantised network in its own terms, and a description without air.

OpenVINO translates ONNX word for word, and its .xml spells every word out: shapes that it infers
anyway, spaces, the same number once for every use. For a small network that is more than the
weights in 8 bits.
"""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.evaluation.metrics import Array

if TYPE_CHECKING:
    import onnx

DOMAIN = "org.openvinotoolkit"
"""Of the operations that OpenVINO adds to ONNX."""
UNDERSTOOD = {
    "auto_broadcast": ("numpy",),
    "auto_pad": ("explicit",),
    "dilations": ("1, 1",),
    "pads_begin": ("0, 0",),
    "pads_end": ("0, 0",),
}
"""What OpenVINO takes where an operation does not say."""
UNREAD = re.compile(r"prepare\.|q\d+\b")
"""Names of tensors that are no layer's of the network."""


def in_own_terms(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same model for OpenVINO alone (in place), without quantise and dequantise operations.

    Activations pass a FakeQuantize, weights are integers times their scale, biases are float32.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    quantised = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    if not quantised:
        return model
    nodes: list[Any] = []
    for node in graph.node:
        output = node.output[0]
        if node.op_type == "Mul" and all(name in constants for name in node.input):
            constants[output] = constants[node.input[0]] * constants[node.input[1]]
        elif node.op_type == "QuantizeLinear":
            continue
        elif node.op_type != "DequantizeLinear":
            nodes.append(node)
        elif node.input[0] in constants:
            integers, scale = constants[node.input[0]], constants[node.input[1]]
            if integers.dtype == np.int32:
                constants[output] = (integers * scale).astype(np.float32)
                continue
            wide, factor = f"{output}.wide", f"{output}.scale"
            constants[factor] = _along(node, scale, integers.ndim)
            nodes.append(helper.make_node("Cast", [node.input[0]], [wide], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [wide, factor], [output]))
        else:
            low, high = _bounds(node, constants)
            source = quantised[node.input[0]].input[0]
            nodes.append(
                helper.make_node(
                    "FakeQuantize", [source, low, high, low, high], [output],
                    domain=DOMAIN, levels=256,
                )
            )  # fmt: skip
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(values), name)
        for name, values in constants.items()
        if name in used
    )
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _along(node: "onnx.NodeProto", values: Array, dimensions: int) -> Array:
    """One number, or one per channel in a shape that goes along a tensor of so many dimensions."""
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    if values.size == 1:
        return values.reshape(())
    shape = [1] * dimensions
    shape[axis] = -1
    return values.reshape(shape)


def _bounds(node: "onnx.NodeProto", constants: dict[str, Array]) -> tuple[str, str]:
    """Names of the least and the largest number that an activation in 8 bits can be."""
    scale = constants[node.input[1]]
    zero = constants[node.input[2]] if len(node.input) > 2 else np.zeros_like(scale, np.uint8)
    limits = np.iinfo(zero.dtype)
    names = []
    for limit in (limits.min, limits.max):
        bound = (np.float32(limit) - zero.astype(np.float32)) * scale
        names.append(f"{node.output[0]}.{limit}")
        constants[names[-1]] = _along(node, bound, 4).astype(np.float32)
    return names[0], names[1]


def shorten(path: Path) -> None:
    """Rewrite a description that OpenVINO wrote: what it infers or repeats is left out."""
    document = ET.parse(path)
    net = document.getroot()
    layers, edges = net.find("layers"), net.find("edges")
    assert layers is not None
    assert edges is not None
    first: dict[tuple[tuple[str, str], ...], str] = {}
    same: dict[str | None, str] = {}
    for layer in list(layers):
        if layer.get("type") == "Const":
            data = layer.find("data")
            assert data is not None
            known = first.setdefault(tuple(sorted(data.items())), layer.attrib["id"])
            if known != layer.get("id"):
                same[layer.get("id")] = known
                layers.remove(layer)
        _strip(layer)
    for edge in edges:
        source = edge.attrib["from-layer"]
        edge.set("from-layer", same.get(source, source))
    for element in net.iter():
        element.tail = None
        element.text = (element.text or "").strip() or None
    path.write_bytes(ET.tostring(net).replace(b" />", b"/>"))


def _strip(layer: ET.Element) -> None:
    """Leave out what follows from the inputs or is understood, and names that nobody reads."""
    is_end = layer.get("type") in ("Parameter", "Result")
    if not is_end:
        layer.set("name", "")
    for data in layer.findall("data"):
        for name, value in list(data.items()):
            if value in UNDERSTOOD.get(name, ()):
                del data.attrib[name]
            else:
                data.set(name, value.replace(", ", ","))
        if not data.attrib:
            layer.remove(data)
    for notes in layer.findall("rt_info"):
        layer.remove(notes)
    for side in ("input", "output"):
        for port in layer.findall(f"{side}/port"):
            for dimension in port.findall("dim"):
                port.remove(dimension)
            if side == "input":
                port.attrib.pop("precision", None)
            names = port.attrib.pop("names", "").split(",")
            read = [name for name in names if name and not UNREAD.match(name)]
            if read and layer.get("type") != "Const":
                port.set("names", ",".join(read))
