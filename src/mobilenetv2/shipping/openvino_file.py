"""OpenVINO files: a graph (.xml) with its weights (.bin) beside it, the fastest on most CPUs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.sessions import Array, Session, openvino_core, openvino_session
from mobilenetv2.shipping.formats import Content
from mobilenetv2.shipping.onnx_file import onnx_model
from mobilenetv2.shipping.openvino_constants import join_constants
from mobilenetv2.shipping.openvino_graph import in_own_terms, shorten


class OpenVinoFormat:
    """Writes and runs ``.xml`` with ``.bin``."""

    name = "openvino"
    suffix = ".xml"
    beside: tuple[str, ...] = (".bin",)
    libraries = ("openvino", "onnx")
    fixed_size = False

    def runtime(self) -> str:
        """Library and version."""
        import openvino

        return f"OpenVINO {openvino.__version__.partition('-')[0]}, float32 arithmetic"

    def write(self, content: Content, folder: Path, stem: str) -> Path:
        """Write both files into ``folder``; the metadata becomes ``rt_info``."""
        require("openvino")
        import openvino
        from openvino._offline_transformations import apply_moc_transformations

        half = content.precision == "fp16"
        proto = onnx_model(replace(content, precision="fp32") if half else content)
        entries = list(proto.metadata_props)
        model = openvino_core().read_model(in_own_terms(proto).SerializeToString())
        # What `openvino.convert_model` does too, without its messages to the makers.
        apply_moc_transformations(model, False)
        if content.precision == "int8":
            join_constants(model)
        for entry in entries:
            model.set_rt_info(entry.value, [entry.key])
        path = folder / f"{stem}{self.suffix}"
        openvino.save_model(model, str(path), compress_to_fp16=half)
        shorten(path)
        return path

    def open(self, path: Path) -> Session:
        """The file in its runtime."""
        return openvino_session(path)

    def open_layers(self, path: Path, names: Iterable[str]) -> Session | None:
        """The file with the outputs of its layers besides."""
        core = openvino_core()
        model = core.read_model(str(path))
        ports = {
            name: output
            for operation in model.get_ordered_ops()
            for output in operation.outputs()
            for name in output.get_names()
        }
        wanted = [ports[name] for name in names if name in ports]
        model.add_outputs(wanted)
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(inputs: Array) -> dict[str, Array]:
            results = compiled([inputs])
            return {name: results[port] for port in compiled.outputs for name in port.get_names()}

        return run
