"""Files for phones and small devices: LiteRT (.tflite) and ExecuTorch (.pte).

Both fix the size of the picture when the file is made: one picture of ``--picture-size``, which by
default is the size after resizing and before cropping, so that nothing is left to resize inside.
Labels and description are a ZIP archive at the end of the file, as LiteRT's own tools do it: who
reads the model does not look there, any ZIP tool does.
"""

import zipfile
from collections.abc import Iterable
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.sessions import Array, Session
from mobilenetv2.shipping.contract import LOGITS, PROBABILITIES, Contract, metadata
from mobilenetv2.shipping.formats import Content, picture_size


class LiteRtFormat:
    """Writes and runs ``.tflite``."""

    name = "litert"
    suffix = ".tflite"
    beside: tuple[str, ...] = ()
    libraries = ("litert_torch", "ai_edge_litert")
    fixed_size = True

    def runtime(self) -> str:
        """Library and version."""
        return f"LiteRT {packages.version('ai-edge-litert')}"

    def write(self, content: Content, folder: Path, stem: str) -> Path:
        """Write the file into ``folder``."""
        require(*self.libraries)
        import litert_torch

        module, example = _module(content)
        path = folder / f"{stem}{self.suffix}"
        litert_torch.convert(module, (example,)).export(str(path))
        _describe(path, content)
        return path

    def open(self, path: Path) -> Session:
        """The file in its runtime, one picture after the other."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]["index"]
        exits = [detail["index"] for detail in interpreter.get_output_details()]

        def run(one: Array) -> list[Array]:
            interpreter.set_tensor(entry, one)
            interpreter.invoke()
            return [interpreter.get_tensor(exit_) for exit_ in exits]

        return _one_by_one(run)

    def open_layers(self, path: Path, names: Iterable[str]) -> Session | None:
        """Nothing: the converter renames and merges layers."""
        return None


class ExecuTorchFormat:
    """Writes and runs ``.pte``, with the XNNPACK kernels."""

    name = "executorch"
    suffix = ".pte"
    beside: tuple[str, ...] = ()
    libraries = ("executorch",)
    fixed_size = True

    def runtime(self) -> str:
        """Library and version."""
        return f"ExecuTorch {packages.version('executorch')}, XNNPACK"

    def write(self, content: Content, folder: Path, stem: str) -> Path:
        """Write the file into ``folder``."""
        require(*self.libraries)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        module, example = _module(content)
        program = torch.export.export(module, (example,))
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        path = folder / f"{stem}{self.suffix}"
        path.write_bytes(lowered.to_executorch().buffer)
        _describe(path, content)
        return path

    def open(self, path: Path) -> Session:
        """The file in its runtime, one picture after the other."""
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(str(path)).load_method("forward")
        assert method is not None

        def run(one: Array) -> list[Array]:
            return [output.numpy() for output in method.execute([torch.from_numpy(one)])]

        return _one_by_one(run)

    def open_layers(self, path: Path, names: Iterable[str]) -> Session | None:
        """Nothing: the layers disappear in the kernels."""
        return None


def _module(content: Content) -> tuple[torch.nn.Module, torch.Tensor]:
    """What is converted, and an example of its input."""
    contract = Contract(content.classifier).eval()
    wanted = content.classifier.preprocessing
    if content.raw:
        return contract.network, torch.zeros(1, wanted.channels, wanted.height, wanted.width)
    return contract, torch.zeros(1, *picture_size(content), 3, dtype=torch.uint8)


def _one_by_one(run: Any) -> Session:
    """A session from a function of one picture."""

    def run_all(inputs: Array) -> dict[str, Array]:
        rows = [run(np.ascontiguousarray(one[None])) for one in inputs]
        names = (LOGITS,) if len(rows[0]) == 1 else (PROBABILITIES, LOGITS)
        return {
            name: np.concatenate([row[place] for row in rows]) for place, name in enumerate(names)
        }

    return run_all


def _describe(path: Path, content: Content) -> None:
    """Append labels and description."""
    with zipfile.ZipFile(path, "a") as archive:
        labels = "\n".join(content.classifier.labels) + "\n"
        archive.writestr("labels.txt", labels.encode(errors="replace"))
        size = None if content.raw else picture_size(content)
        for name, text in metadata(content.classifier, raw=content.raw, size=size).items():
            archive.writestr(f"mobilenetv2/{name}", text)


def description(path: Path) -> dict[str, str]:
    """What :func:`_describe` appended to a file."""
    with zipfile.ZipFile(path) as archive:
        return {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if name.startswith("mobilenetv2/")
        }
