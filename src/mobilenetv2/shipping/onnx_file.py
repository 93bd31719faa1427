"""ONNX files: one file, read by ONNX Runtime on every platform, the browser included."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.sessions import Array, Session, onnxruntime_session
from mobilenetv2.shipping.formats import Content
from mobilenetv2.shipping.onnx_contract import contract_model, raw_model

if TYPE_CHECKING:
    import onnx

HALVED = 1024  # numbers: shorter constants stay float32, they save nothing


class OnnxFormat:
    """Writes and runs ``.onnx``."""

    name = "onnx"
    suffix = ".onnx"
    beside: tuple[str, ...] = ()
    libraries = ("onnx", "onnxruntime")
    fixed_size = False

    def runtime(self) -> str:
        """Library and version."""
        import onnxruntime

        return f"ONNX Runtime {onnxruntime.__version__}"

    def write(self, content: Content, folder: Path, stem: str) -> Path:
        """Write the file into ``folder``."""
        model = onnx_model(content)
        path = folder / f"{stem}{self.suffix}"
        path.write_bytes(model.SerializeToString())
        return path

    def open(self, path: Path) -> Session:
        """The file in its runtime."""
        return onnxruntime_session(path)

    def open_layers(self, path: Path, names: Iterable[str]) -> Session:
        """The file with the outputs of its layers besides."""
        import onnx

        model = expose(onnx.load(str(path)), names)
        return onnxruntime_session(model.SerializeToString())


def onnx_model(content: Content) -> "onnx.ModelProto":
    """What is to be exported, as ONNX, in float32, in float16 or with an 8-bit core."""
    require("onnx")
    if content.raw:
        model = raw_model(content.classifier, content.core)
    else:
        model = contract_model(content.classifier, content.core)
    return _halved(model) if content.precision == "fp16" else model


def expose(model: "onnx.ModelProto", names: Iterable[str]) -> "onnx.ModelProto":
    """The model with the tensors of these names as further outputs, where it has them."""
    from onnx import TensorProto, helper

    present = {output for node in model.graph.node for output in node.output}
    known = {output.name for output in model.graph.output}
    for name in names:
        if name in present and name not in known:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return model


def _halved(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The weights in float16, widened when the file is loaded: arithmetic stays float32."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for constant in model.graph.initializer:
        values: Array = numpy_helper.to_array(constant)
        if values.dtype == np.float32 and values.size >= HALVED:
            wide, name = constant.name, f"{constant.name}.half"
            constant.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
            casts.append(helper.make_node("Cast", [name], [wide], wide, to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    return model
