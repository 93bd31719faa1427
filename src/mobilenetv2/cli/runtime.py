"""Which library runs the classifier of a command."""

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from mobilenetv2.classifier import Classifier


def in_runtime(classifier: "Classifier", runtime: str, pictures: int, quiet: bool) -> "Classifier":
    """The classifier run by the library that was asked for, or that is the fastest here."""
    from mobilenetv2.runtimes.engine import Engine, with_runtime
    from mobilenetv2.runtimes.memory import fastest

    if runtime != "auto":
        return with_runtime(classifier, runtime)
    chosen = fastest(classifier, pictures)
    if isinstance(chosen.engine, Engine):
        Console(stderr=True, quiet=quiet).print(
            f"run by {chosen.engine.runtime}, the fastest here (--runtime torch for PyTorch)",
            style="dim",
        )
    return chosen
