"""Which library runs the classifier of a command."""

from typing import TYPE_CHECKING

from mobilenetv2.cli.console import console
from mobilenetv2.cli.voice import is_first

if TYPE_CHECKING:
    from mobilenetv2.classifier import Classifier


def in_runtime(
    classifier: "Classifier", runtime: str, pictures: int, quiet: bool, workers: int = 1
) -> "Classifier":
    """The classifier run by the library that was asked for, or that is the fastest here."""
    from mobilenetv2.network.cpp_inference import is_built
    from mobilenetv2.runtimes.engine import OWN, Engine, precision, with_runtime
    from mobilenetv2.runtimes.memory import fastest, recall

    if runtime in OWN and not is_built(OWN[runtime]):
        _say("compiling the kernels for this processor, once: some seconds", quiet)
    if runtime != "auto":
        return with_runtime(classifier, runtime, workers)
    chosen = fastest(classifier, pictures, workers)
    if isinstance(chosen.engine, Engine):
        name = chosen.engine.runtime
        measured = ", the fastest that agrees here" if name in recall(classifier) else ""
        _say(
            f"run by {name} in {precision(name)}{measured} (--runtime torch for PyTorch in "
            "float32)",
            quiet,
        )
    return chosen


def _say(line: str, quiet: bool) -> None:
    console(stderr=True, quiet=quiet or not is_first()).print(line, style="dim")
