"""The record of a proof: what was exported, on what it was tried, and what came out."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from mobilenetv2.files import write_text
from mobilenetv2.shipping.held_out import ENOUGH
from mobilenetv2.shipping.proof import Comparison, Threshold


@dataclass(frozen=True)
class Certificate:
    """Everything that a reader needs to believe a file, or not to.

    Attributes:
        file: its name.
        format: "onnx", "openvino" or "torch", with its precision.
        runtime: library and version that ran it.
        model: where the classifier came from.
        data: what it was tried on.
        comparison: the file beside the classifier.
        threshold: what was required.
        size: of the file in bytes.
        reference_size: of the same file in float32, in bytes; None where that is the file.
        latency: milliseconds for one picture, by runtime: the median.
        notes: what a reader should know besides.
    """

    file: str
    format: str
    runtime: str
    model: str
    data: str
    comparison: Comparison
    threshold: Threshold
    size: int
    reference_size: int | None
    latency: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """Which thresholds are not met."""
        return self.comparison.failures(self.threshold)

    def to_json(self) -> str:
        """All of it, with the machine."""
        from mobilenetv2 import __version__

        compared = self.comparison
        document: dict[str, Any] = asdict(self)
        document["comparison"] |= {
            "accuracy": compared.accuracy,
            "accuracy_interval": list(compared.interval),
            "reference_accuracy": compared.reference_accuracy,
            "accuracy_drop": compared.drop,
            "accuracy_drop_interval": list(compared.drop_interval),
        }
        document |= {
            "passed": not self.failures,
            "failures": self.failures,
            "machine": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
            "version": __version__,
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_text(path, self.to_json())

    def table(self) -> Table:
        """The same for people."""
        table = Table(box=None, pad_edge=False, show_header=False)
        compared, required = self.comparison, self.threshold
        low, high = compared.drop_interval
        few = f" (fewer than {ENOUGH}: weak)" if compared.pictures < ENOUGH else ""
        size = f"{self.size / 1e6:.2f} MB"
        if self.reference_size:
            size += f", {self.size / self.reference_size:.2f} × float32"
        rows = [
            ("file", f"{self.file} ({self.format})"),
            ("run by", self.runtime),
            ("tried on", f"{compared.pictures:,} pictures of {self.data}{few}"),
            (
                "largest |Δlogit|",
                f"{compared.largest_difference:.2g}"
                + (f" (allowed {required.difference:g})" if required.difference else ""),
            ),
            (
                "same label",
                f"{compared.agreement:.2%} (required {required.agreement:.0%})",
            ),
            ("accuracy", f"{compared.accuracy:.2%}, classifier {compared.reference_accuracy:.2%}"),
            (
                "accuracy lost",
                f"{compared.drop:.2%} (95 % interval {low:.2%} to {high:.2%})"
                + (f", allowed {required.drop:.2%}" if required.drop is not None else ""),
            ),
            ("size", size),
            *((f"one picture, {name}", f"{ms:.2f} ms") for name, ms in self.latency.items()),
            *(("note", note) for note in self.notes),
        ]
        for name, value in rows:
            table.add_row(name, escape(value))
        return table
