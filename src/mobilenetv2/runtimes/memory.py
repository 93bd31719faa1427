"""The fastest runtime of this machine, remembered between calls.

`mobilenetv2 benchmark` measures and writes; predicting reads. What was measured holds for the
processor, for the versions of the libraries, and for the model it was measured with. For other
models of the same shape, the fastest float32 runtime is known too: rounding apart, that one gives
the same answers whatever the weights are. Where nothing was measured, this package's own kernels in
float32 are taken, after a look at whether they agree.
"""

import json
import os
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from mobilenetv2.cache import cache_folder
from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import UserError
from mobilenetv2.files import write_text
from mobilenetv2.network import cpp_inference
from mobilenetv2.runtimes import processor
from mobilenetv2.runtimes.copies import fingerprint, shape
from mobilenetv2.runtimes.engine import LIBRARIES, agrees, available, with_runtime

WORTH = 64
"""Pictures from which on another runtime repays its start."""
WORTH_COMPILING = 10**8
"""Pixels from which on compiling this package's own runtime repays the seconds that it takes."""
MEASURED = ("torch", "onnxruntime", "openvino", "ai-edge-litert", "mobilenetv2")
"""The packages whose versions the speed depends on."""


def fastest(classifier: Classifier, pictures: int, workers: int = 1) -> Classifier:
    """The classifier in the runtime that was measured to be fastest here, where that pays.

    One that cannot start, as its copy of the network is damaged, is passed over. Where nothing was
    measured, this package's own runtime in float32 takes PyTorch's place, if it agrees on noise.

    Args:
        classifier: on any device; other runtimes serve the CPU alone.
        pictures: how many will be asked about.
        workers: threads that will ask at the same time.
    """
    if pictures < WORTH or classifier.device.type != "cpu" or classifier.engine is not None:
        return classifier
    for runtime in recall(classifier):
        with suppress(UserError):  # nobody asked for this one
            if available(runtime, classifier):
                return with_runtime(classifier, runtime, workers)
    if own_serves(classifier, pictures):
        return with_runtime(classifier, "cpp", workers)
    return classifier


def own_serves(classifier: Classifier, pictures: int) -> bool:
    """Whether this package's own runtime in float32 takes PyTorch's place for so many pictures.

    It does where it is there already, or worth its compiling, and agrees on noise.
    """
    wanted = classifier.preprocessing
    pixels = pictures * wanted.height * wanted.width
    if not (cpp_inference.is_built() or pixels >= WORTH_COMPILING):
        return False
    with suppress(UserError):
        return available("cpp", classifier) and agrees(classifier, "cpp")
    return False


def recall(classifier: Classifier) -> list[str]:
    """The fastest runtimes known for this classifier on this machine, the best first.

    That is the one that was measured with these weights, and the fastest float32 one for a network
    of this shape, which serves where the first cannot start.
    """
    known = _read().get(machine(), {})
    if not known:
        return []
    noted = [known.get(key) for key in (fingerprint(classifier), shape(classifier))]
    return [runtime for runtime in noted if isinstance(runtime, str) and runtime in LIBRARIES]


def remember(classifier: Classifier, runtime: str | None, float32_runtime: str) -> Path:
    """Note the fastest runtime for this classifier, and the fastest in float32 for its shape.

    Args:
        classifier: what was measured.
        runtime: for these weights; None leaves what is noted for them.
        float32_runtime: for all of this shape.

    Raises:
        WorkFailed: the note cannot be written.
    """
    notes = _read()
    known = notes.setdefault(machine(), {})
    if runtime is not None:
        known[fingerprint(classifier)] = runtime
    known[shape(classifier)] = float32_runtime
    path = notes_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(notes, indent=1) + "\n")
    return path


def machine() -> str:
    """The processor and the versions that the speed depends on."""
    versions = [f"{name} {_version(name)}" for name in MEASURED]
    return f"{processor.name()}, {os.cpu_count()} cores, {', '.join(versions)}"


def notes_path() -> Path:
    """The file that remembers."""
    return cache_folder() / "runtimes.json"


def _read() -> dict[str, Any]:
    """What is noted; nothing if the file is missing or damaged, as it can be measured again."""
    try:
        notes = json.loads(notes_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(notes, dict) and all(isinstance(known, dict) for known in notes.values())
    return notes if whole else {}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
