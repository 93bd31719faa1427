"""PyTorch's own format (.pt2): an exported program that runs without this package."""

from collections.abc import Iterable
from pathlib import Path

import torch

from mobilenetv2.runtimes.sessions import Array, Session
from mobilenetv2.shipping.contract import LOGITS, PROBABILITIES, Contract, metadata
from mobilenetv2.shipping.formats import Content

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchFormat:
    """Writes and runs ``.pt2``."""

    name = "torch"
    suffix = ".pt2"
    beside: tuple[str, ...] = ()
    libraries = ("torch",)
    fixed_size = False

    def runtime(self) -> str:
        """Library and version."""
        return f"PyTorch {torch.__version__}"

    def write(self, content: Content, folder: Path, stem: str) -> Path:
        """Write the file into ``folder``; the metadata are its extra files."""
        path = folder / f"{stem}{self.suffix}"
        program = export_program(content)
        texts = metadata(content.classifier, raw=content.raw)
        torch.export.save(program, str(path), extra_files=texts)
        return path

    def open(self, path: Path) -> Session:
        """The file in its runtime."""
        program = torch.export.load(str(path)).module()

        def run(inputs: Array) -> dict[str, Array]:
            with torch.inference_mode():
                outputs = program(torch.from_numpy(inputs))
            if isinstance(outputs, torch.Tensor):
                return {LOGITS: outputs.numpy()}
            return {
                name: output.numpy()
                for name, output in zip((PROBABILITIES, LOGITS), outputs, strict=True)
            }

        return run

    def open_layers(self, path: Path, names: Iterable[str]) -> Session | None:
        """The file with the outputs of its layers besides."""
        program = torch.export.load(str(path))
        module = program.module()
        assert isinstance(module, torch.fx.GraphModule)
        wanted = set(names)

        def run(inputs: Array) -> dict[str, Array]:
            recorder = _Recorder(module, wanted)
            with torch.inference_mode():
                recorder.run(torch.from_numpy(inputs))
            return recorder.found

        return run


class _Recorder(torch.fx.Interpreter):
    """Runs a program and keeps what each layer gives, under the name of its module."""

    def __init__(self, module: torch.fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self._wanted = wanted
        self.found: dict[str, Array] = {}

    def run_node(self, n: torch.fx.Node) -> object:
        """One operation."""
        result = super().run_node(n)
        stack = n.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()), ("", None))[0] if stack else ""
        name = path.removeprefix("network.")
        if name in self._wanted and isinstance(result, torch.Tensor):
            self.found[name] = result.float().numpy().copy()
        return result


class _NetworkAlone(torch.nn.Module):
    """The network of a contract, float32 in and out whatever it computes in."""

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self.network = contract.network
        self.dtype = contract.dtype

    def forward(self, normalised: torch.Tensor) -> torch.Tensor:
        """Normalised pictures float32 N×C×H×W in, logits float32 N×K out."""
        logits: torch.Tensor = self.network(normalised.to(self.dtype)).float()
        return logits


def export_program(content: Content) -> torch.export.ExportedProgram:
    """The contract, or the network alone, as an exported program with free batch and size."""
    dynamic = torch.export.Dim.DYNAMIC
    wanted = content.classifier.preprocessing
    contract = Contract(content.classifier, _DTYPES[content.precision])
    module: torch.nn.Module = contract
    if content.raw:
        module = _NetworkAlone(contract)
        example = torch.zeros(2, wanted.channels, wanted.height, wanted.width)
        shapes = {0: dynamic}
    else:
        example = torch.zeros(2, wanted.height + 3, wanted.width + 5, 3, dtype=torch.uint8)
        shapes = dict.fromkeys((0, 1, 2), dynamic)
    program = torch.export.export(module.eval(), (example,), dynamic_shapes=(shapes,))
    for node in program.graph.nodes:  # which lines of which file, on this machine
        node.meta.pop("stack_trace", None)
    return program
