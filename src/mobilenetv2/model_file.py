"""The file that holds a classifier: its weights, sealed, and a description of it in readable JSON.

A ``model.safetensors`` may come from a stranger. What is read here is whole, small enough to be
looked at, and real numbers; whether description and weights make a classifier is decided in
:mod:`mobilenetv2.classifier`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors_bytes
from torch import Tensor

from mobilenetv2.errors import ModelFileError
from mobilenetv2.files import read_back, written_whole
from mobilenetv2.seals import safetensors_is_whole, seal_safetensors

METADATA_KEY = "mobilenetv2"
"""Where the safetensors file keeps the JSON that describes the classifier."""

LONGEST_DESCRIPTION = 1 << 20  # characters; nested lists of more keep the parser busy for seconds
LONGEST_HEADER = 4 * LONGEST_DESCRIPTION  # bytes, where quotes and backslashes are written as two
MOST_TENSORS = 10_000
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def write_model_file(
    path: Path, description: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Write weights with their description inside; the file is whole or not there.

    Raises:
        ModelFileError: the description is too long for :func:`read_model_file`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # Escaped to ASCII, so that labels from folder names in a broken encoding survive too.
    text = json.dumps(description, indent=1)
    if len(text) > LONGEST_DESCRIPTION:
        raise ModelFileError(f"{path}: labels and settings take {len(text):,} characters")
    contents = bytearray(to_safetensors_bytes(plain, {METADATA_KEY: text}))
    seal_safetensors(contents)
    with written_whole(path) as file:
        file.write(contents)
        read_back(file, contents)


def read_model_file(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """The description, as JSON values of any kind, and the weights in float32. No code can run.

    Raises:
        ModelFileError: the file is missing, damaged, or holds something else.
    """
    try:
        with path.open("rb") as bytes_:
            header_size = int.from_bytes(bytes_.read(8), "little")
            if header_size > LONGEST_HEADER or not safetensors_is_whole(bytes_):
                raise ModelFileError(
                    f"{path}: not a whole model of this program: its SHA-256 is missing or "
                    "does not match, so it was cut off, damaged or written by another"
                )
        with safe_open(str(path), framework="pt") as file:
            description = _described(file.metadata() or {}, str(path))
            names = file.keys()
            if len(names) > MOST_TENSORS:
                raise ModelFileError(f"{path}: {len(names):,} tensors are no classifier's")
            weights = {name: as_float32(file.get_tensor(name), str(path)) for name in names}
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]  # PyTorch's own, of a shape, go on for pages
        raise ModelFileError(f"{path}: not a readable safetensors file ({reason})") from error
    return description, weights


def _described(metadata: Mapping[str, str], origin: str) -> Any:
    """What a file says of the classifier in it, as JSON values of any kind.

    Raises:
        ModelFileError: nothing, or nothing that can be read.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise ModelFileError(
            f"{origin}: holds weights but no classifier (no {METADATA_KEY!r} metadata: labels "
            "and preprocessing are missing)"
        )
    if len(text) > LONGEST_DESCRIPTION:
        raise ModelFileError(f"{origin}: its description is damaged: {len(text):,} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{origin}: its metadata is not JSON ({error})") from error


def require_stored(weights: Mapping[str, Tensor]) -> None:
    """Make sure that the numbers are all there: a view can claim a thousand times what it shows.

    Raises:
        ValueError: they are not.
    """
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.device.type == "meta":
            raise ValueError(f"{name} is not stored as plain numbers")
    stored = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in weights.values()
    }
    if sum(tensor.nbytes for tensor in weights.values()) > sum(stored.values()):
        raise ValueError("fewer numbers are stored than the weights have")


def as_float32(weight: Tensor, origin: str) -> Tensor:
    """Weights of another precision in the one that networks predict in; counters as they are."""
    if weight.dtype == torch.int64:
        return weight
    if weight.dtype not in PRECISIONS:
        raise ModelFileError(
            f"{origin}: the weights do not fit the network that the file describes: they are "
            f"{weight.dtype}, not real numbers of 16 bits or more"
        )
    return weight.float()
