"""Weights files: their tensors under this network's names, and what they say about themselves.

No code of a file is ever run: pickles may hold tensors and plain containers, nothing else.
"""

import functools
import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobilenetv2.errors import ModelFileError
from mobilenetv2.model_file import METADATA_KEY
from mobilenetv2.network.keras_weights import LARGEST_FILE, read_keras
from mobilenetv2.network.mobilenetv2 import PAPER_STRIDES, MobileNetV2, Padding
from mobilenetv2.network.weights import Convention, WeightsInfo, averaged

WIDTHS = (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
"""Widths that a file is recognised by."""

WRAPPERS = ("module.", "_orig_mod.", "network.", "model.")
"""Prefixes that DataParallel, torch.compile and owners of a network put before the names."""


CHECKPOINT_KEYS = ("averaged", "weights")
"""Weights in a checkpoint of this package, the first that are there; beside its ``classifier``."""

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "network", "net")


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under this network's names, and the file's metadata if it has any.

    No code of the file is run: pickles may hold tensors and plain containers, nothing else.

    Raises:
        ModelFileError: the file is damaged, dangerous, or not a MobileNetV2.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelFileError(f"{path} is empty. Fetch or save it again.")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror or error}).") from error
    metadata: dict[str, str] = {}
    match path.suffix.lower():
        case ".h5" | ".hdf5":
            tensors = read_keras(path)
        case ".safetensors":
            tensors, metadata = _read_safetensors(path)
        case ".pth" | ".pt" | ".tar":
            tensors, metadata = _read_torch(path)
        case suffix:
            raise ModelFileError(
                f"{path} is no weights file: its name ends in {suffix or 'nothing'!r}; known are "
                ".pth, .pt, .tar, .safetensors and .h5."
            )
    # Kept are numbers that weights are made of; left behind are counters, indices, placeholders.
    tensors = {
        _plain_name(name): tensor
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.device.type == "cpu" and not tensor.is_sparse
    }
    _check_tensors(tensors, path)
    return {name: tensor.float() for name, tensor in tensors.items()}, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a whole safetensors file ({error}). Fetch or save it again."
        ) from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        _require_unpacked(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of files that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelFileError(
            f"{path} is damaged, or holds more than tensors; code in it was not run. Save "
            "network.state_dict() alone, with torch.save or as .safetensors."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ModelFileError(
            f"{path} is not a whole PyTorch file ({error}). Fetch or save it again."
        ) from error
    metadata = {}
    if isinstance(content, Mapping) and {"classifier", *CHECKPOINT_KEYS} <= content.keys():
        metadata = {METADATA_KEY: json.dumps(content["classifier"], default=str)}
        content = next(content[key] for key in CHECKPOINT_KEYS if content[key] is not None)
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path} holds no state dict but a {type(content).__name__}.")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return tensors, metadata


def _require_unpacked(path: Path) -> None:
    """PyTorch packs nothing in its archives; what is packed may be a thousand times as large."""
    if not zipfile.is_zipfile(path):  # its older kind of file
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if packed or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("it has packed or overlapping records")


def info_of_file(
    path: Path, metadata: Mapping[str, str], convention: Convention | None
) -> WeightsInfo:
    """How a file was trained: as the caller says, as its metadata tell, or as its kind suggests."""
    info = WeightsInfo(metadata.get("origin", path.name))
    if convention is not None:
        return info.trained_by(convention)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return info.trained_by("keras")
    try:
        if METADATA_KEY in metadata:
            return _info_of_classifier(info, json.loads(metadata[METADATA_KEY]))
        if "padding" not in metadata:
            info = replace(info, guessed=True)
        padding = _padding(metadata.get("padding", "symmetric"))
        info = info.trained_by("keras" if padding == "keras" else "torchvision")
        eps = metadata.get("norm_eps") or metadata.get("bn_eps") or info.norm_eps
        return replace(info, norm_eps=_norm_eps(eps))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ModelFileError(
            f"{path} does not tell how it was trained: its metadata are wrong ({error!r})."
        ) from error


def _info_of_classifier(info: WeightsInfo, description: Mapping[str, Any]) -> WeightsInfo:
    """What a saved classifier says of its network and preprocessing."""
    network, preprocessing = description["network"], description["preprocessing"]
    mean = tuple(float(value) for value in preprocessing["mean"])
    std = tuple(float(value) for value in preprocessing["std"])
    width = float(network["width"])
    strides = tuple(map(int, network["strides"] or PAPER_STRIDES))  # left out, the paper's
    if len(strides) != len(PAPER_STRIDES) or not {1, 2}.issuperset(strides):
        raise ValueError(f"strides {strides}")
    finite = all(map(math.isfinite, (*mean, *std)))
    if not (0 < width < 100 and mean and len(mean) == len(std) and min(std) > 0 and finite):
        raise ValueError(f"width {width}, mean {mean}, std {std}")
    return replace(
        info,
        width=width,
        strides=strides,
        padding=_padding(network["padding"]),
        norm_eps=_norm_eps(network["norm_eps"]),
        mean=mean,
        std=std,
    )


def _norm_eps(value: Any) -> float:
    eps = float(value)
    if not 0 < eps < 1:
        raise ValueError(f"norm_eps {eps}")
    return eps


def _padding(name: str) -> Padding:
    match name:
        case "keras" | "tf-same":
            return "keras"
        case "symmetric":
            return "symmetric"
    raise ValueError(f"padding {name!r}")


def completed(
    info: WeightsInfo, tensors: Mapping[str, Tensor], width: float | None, path: Path
) -> WeightsInfo:
    """What the tensors themselves tell: width, channels, classes."""
    channels = tensors["features.0.0.weight"].shape[1]
    head = tensors.get("classifier.1.weight")
    info = replace(
        info,
        width=_checked_width(tensors, width, (info.width, *WIDTHS), path),
        in_channels=channels,
        num_classes=head.shape[0] if head is not None and head.dim() == 2 else None,
    )
    return info if len(info.mean) == channels else averaged(info, channels)


def _checked_width(
    tensors: Mapping[str, Tensor], asked: float | None, known: Sequence[float], path: Path
) -> float:
    """The width of the file, which is the one that was asked for."""

    def wrong(width: float) -> str | None:
        shapes = _shapes(width, tensors["features.0.0.weight"].shape[1])
        return next((name for name in shapes if tensors[name].shape != shapes[name]), None)

    if asked is not None and not wrong(asked):
        return asked
    found = next((width for width in known if not wrong(width)), None)
    if found is None:
        name = wrong(asked or 1.0)
        raise ModelFileError(
            f"{path} has no width this program knows"
            f"{f', and not the width {asked:g} asked for' if asked else ''}: {name} has shape "
            f"{tuple(tensors[str(name)].shape)}."
        )
    if asked is not None:
        raise ModelFileError(
            f"{path} has weights of width {found:g}, asked was width {asked:g}. "
            f"Take width {found:g}, or other weights."
        )
    return found


def _plain_name(name: str) -> str:
    for wrapper in WRAPPERS * 2:
        name = name.removeprefix(wrapper)
    return name


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """All tensors of the backbone are there, not absurdly large, and all numbers are finite."""
    shapes = _shapes(1.0)
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise ModelFileError(
            f"{path} is not a MobileNetV2 under torchvision's names: {len(missing)} tensors are "
            f"missing, the first is {missing[0]}."
        )
    odd = next((name for name in shapes if tensors[name].dim() != len(shapes[name])), None)
    if odd or sum(tensor.numel() for tensor in tensors.values()) > LARGEST_FILE:
        raise ModelFileError(f"{path} is not a MobileNetV2: {odd or 'it'} has the wrong shape.")
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise ModelFileError(f"{path} is damaged: {name} has numbers that are not finite.")


@functools.cache
def _shapes(width: float, in_channels: int = 3) -> dict[str, torch.Size]:
    """Shapes of the backbone's tensors."""
    with torch.device("meta"):
        network = MobileNetV2(num_classes=1, in_channels=in_channels, width=width)
    return {
        name: tensor.shape
        for name, tensor in network.state_dict().items()
        if name.startswith("features.") and not is_counter(name)
    }


def is_counter(name: str) -> bool:
    """Counts training steps, means nothing to the weights and is absent from Keras' files."""
    return name.endswith("num_batches_tracked")
