"""One constant in place of hundreds of small ones, for OpenVINO files of quantised networks.

Each constant costs a paragraph of the description, which is more bytes than most scales and biases
take themselves. Put end to end they are one constant, divided when the file is loaded.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.evaluation.metrics import Array

if TYPE_CHECKING:
    import openvino

Role = tuple[str, int, int]
"""What reads a constant, the dimensions of the constant, and the axis along which it lies."""


def join_constants(model: "openvino.Model") -> None:
    """Join what scales weights, and what biases convolutions (in place).

    They become float16, which changes each by a 2048th of itself at most; a scale that much off
    moves its weights by no more than a 16th of a step between their levels. Constants of which a
    value would lose more, as very small ones do, stay as they are. So does what bounds activations:
    OpenVINO 2026.4.1 finds no integer arithmetic where that is divided.
    """
    from openvino import opset13 as operations

    for (_, _, axis), constants in _by_role(model).items():
        if len(constants) < 2:
            continue
        arrays = [constant.data for constant in constants]
        joined: Array = np.concatenate(arrays, axis).astype(np.float16)
        whole = operations.convert(operations.constant(joined), "f32")
        lengths = np.array([array.shape[axis] for array in arrays], np.int64)
        parts = operations.variadic_split(whole, np.int64(axis), lengths)
        for constant, part in zip(constants, parts.outputs(), strict=True):
            for place in constant.output(0).get_target_inputs():
                place.replace_source_output(part)


def _by_role(model: "openvino.Model") -> dict[Role, list[Any]]:
    """The constants that may be joined."""
    found: dict[Role, list[Any]] = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Constant":
            continue
        if operation.get_element_type().to_string() != "f32":
            continue
        shape = list(operation.shape)
        along = [axis for axis, size in enumerate(shape) if size > 1] or [0]
        readers = {_reader(place.get_node()) for place in operation.output(0).get_target_inputs()}
        one_role = len(readers) == 1 and None not in readers
        if len(shape) >= 4 and len(along) == 1 and one_role and _fits_float16(operation.data):
            role = (str(readers.pop()), len(shape), along[0])
            found.setdefault(role, []).append(operation)
    return found


def _fits_float16(values: Array) -> bool:
    """Whether float16 holds each value to within a 2048th of itself."""
    sizes, limits = np.abs(values), np.finfo(np.float16)
    normal = (sizes >= limits.smallest_normal) & (sizes <= limits.max)
    return bool(((sizes == 0) | normal).all())


def _reader(node: Any) -> str | None:
    """The kind of an operation, if it is one whose constants may be joined."""
    kind: str = node.get_type_name()
    first: str = node.input_value(0).get_node().get_type_name()
    wanted = {"Multiply": ("Convert",), "Add": ("Convolution", "GroupConvolution")}
    return kind if first in wanted.get(kind, ()) else None
