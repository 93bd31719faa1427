"""Optional libraries: whether they are there, and what to type where they are not."""

import importlib.util

from mobilenetv2.errors import UserError
from mobilenetv2.extras import pip_install

EXTRAS = {
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "export",
    "nncf": "export",
    "litert_torch": "litert",
    "ai_edge_litert": "litert",
    "executorch": "executorch",
}
"""The extra of this package that brings each library."""


def installed(*libraries: str) -> bool:
    """Whether all of them can be imported; imports none."""
    return all(importlib.util.find_spec(library) is not None for library in libraries)


def require(*libraries: str) -> None:
    """Make sure that they can be imported.

    Raises:
        UserError: names the command that installs them.
    """
    missing = [library for library in libraries if not installed(library)]
    if missing:
        raise UserError(f"{', '.join(missing)}: not installed; {pip_install(EXTRAS[missing[0]])}")
