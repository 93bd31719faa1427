"""Copies of a network for runtimes that cannot start from its weights within a moment.

A network in 8 bits is calibrated on pictures, and LiteRT's converter takes its time. So
`mobilenetv2 benchmark` makes these copies once; here they are found again, by the weights that
they were made from. Whoever deletes them loses nothing but the time to make them.
"""

import hashlib
from pathlib import Path

from mobilenetv2.cache import cache_folder
from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import UserError
from mobilenetv2.runtimes.processor import weight_bits

SUFFIXES = {
    "onnxruntime-int8": ".int8.onnx",
    "openvino-int8": ".int8.onnx",
    "litert": ".tflite",
}
"""The runtimes that need one, and how its file ends."""


def copy_of(classifier: Classifier, runtime: str) -> Path:
    """Where the copy for this runtime lies, if there is one.

    Networks in 8 bits have a name of their own where weights use 7 of them, since machines of both
    kinds may share a home folder.
    """
    suffix = SUFFIXES[runtime]
    if suffix == ".int8.onnx" and weight_bits() < 8:
        suffix = ".int7.onnx"
    return cache_folder() / "copies" / f"{fingerprint(classifier)}{suffix}"


def has_copy(classifier: Classifier, runtime: str) -> bool:
    """Whether the runtime can start: its copy is there, or it needs none."""
    return runtime not in SUFFIXES or copy_of(classifier, runtime).is_file()


def require_copy(classifier: Classifier, runtime: str) -> Path:
    """The copy for this runtime.

    Raises:
        UserError: there is none; names the command that makes it.
    """
    path = copy_of(classifier, runtime)
    if not path.is_file():
        raise UserError(
            f"--runtime {runtime}: needs a copy of this network that is not there yet; "
            "`mobilenetv2 benchmark MODEL` makes and measures it"
        )
    return path


def shape(classifier: Classifier) -> str:
    """What the speed of a network depends on."""
    wanted, config = classifier.preprocessing, classifier.config
    strides = "".join(map(str, config.strides or ()))
    size = f"{wanted.channels}×{wanted.height}×{wanted.width}"
    return f"{config.network} {config.width} {strides} {config.padding} {size}"


def fingerprint(classifier: Classifier) -> str:
    """A digest of the weights, and of the normalisation that goes into a copy with them."""
    wanted = classifier.preprocessing
    digest = hashlib.sha256(f"{shape(classifier)} {wanted.mean} {wanted.std}".encode())
    for name, tensor in classifier.network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
