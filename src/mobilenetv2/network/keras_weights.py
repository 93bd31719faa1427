"""Keras' HDF5 files of MobileNetV2 weights, read into our state dict.

Keras finds the weights of a layer by its place in the file and not by its name, which has changed
over the years. So does this reader: the k-th convolution, the k-th depthwise convolution and the
k-th batch norm of the file are those of our network. Three layouts are in use:

- the published files and ``save_weights`` until Keras 2: attribute ``layer_names`` with the order;
- ``model.save("….h5")``: the same inside the group ``model_weights``, the backbone possibly nested;
- ``save_weights("….weights.h5")`` of Keras 3: groups ``conv2d_12/vars/0``, numbered by kind.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mobilenetv2.errors import ModelFileError, UserError
from mobilenetv2.extras import pip_install
from mobilenetv2.network.mobilenetv2 import MobileNetV2

LARGEST_FILE = 100_000_000
"""Numbers that a file may hold; width 1.4 with its head has 6 million."""

NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
"""Gamma, beta, moving mean, moving variance: the order in which Keras writes them."""


class Layer(NamedTuple):
    """One layer of the file: its name there and its data sets (``h5py.Dataset``) in order."""

    name: str
    parts: list[Any]

    @property
    def kind(self) -> str:
        """What the shapes tell: "conv", "depthwise", "norm", "dense", or "other"."""
        match [len(part.shape) for part in self.parts]:
            case [4]:
                return "depthwise" if self.parts[0].shape[-1] == 1 else "conv"
            case [1, 1, 1, 1]:
                return "norm"
            case [2, 1]:
                return "dense"
        return "other"


def require_h5py(file: str) -> None:
    """Make sure that ``file`` can be read once it is there.

    Raises:
        UserError: h5py is not installed.
    """
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise UserError(f"Reading {file} needs h5py: {pip_install('keras')}.") from error


def read_keras(path: Path) -> dict[str, Tensor]:
    """The tensors of ``path`` under our names, float32; shapes are still the caller's to check.

    A single dense layer behind the backbone becomes our classifier; of several, each keeps its own
    name.

    Raises:
        UserError: h5py is not installed.
        ModelFileError: not HDF5, damaged, or not a MobileNetV2.
    """
    require_h5py(str(path))
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _state_dict(_layers(file, path), path)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelFileError(
            f"{path} is not a whole HDF5 file of Keras weights ({error}). Fetch or save it again."
        ) from error


def _layers(file: Any, path: Path) -> list[Layer]:
    """The layers that hold data, in the order of the network (within each kind)."""
    root = file.get("model_weights", file)
    parts: dict[str, list[Any]] = {}
    if "layer_names" in root.attrs:
        for layer_name in map(_text, root.attrs["layer_names"]):
            group = root[layer_name]
            for weight_name in map(_text, group.attrs["weight_names"]):
                # A nested backbone is one "layer" here; the path tells its real layers apart.
                name = weight_name.rpartition("/")[0] or layer_name
                parts.setdefault(name, []).append(group[weight_name])
        layers = [Layer(name, data) for name, data in parts.items()]
    else:

        def collect(name: str, item: Any) -> None:
            layer_name, _, index = name.rpartition("/vars/")
            if layer_name and index.isdecimal() and hasattr(item, "shape"):
                parts.setdefault(layer_name, []).append(item)

        root.visititems(collect)
        layers = sorted((Layer(name, data) for name, data in parts.items()), key=_number)
    _check_parts([part for layer in layers for part in layer.parts], file, path)
    return layers


def _number(layer: Layer) -> int:
    """The place of ``conv2d_12`` among its kind; the first has no number."""
    match = re.search(r"_(\d+)$", layer.name)
    return int(match[1]) if match else 0


def _check_parts(parts: list[Any], file: Any, path: Path) -> None:
    if sum(part.size for part in parts) > LARGEST_FILE:
        raise ModelFileError(f"{path} is not a MobileNetV2: more than {LARGEST_FILE:,} numbers.")
    # HDF5 can name other files of the computer as the place of the data: never follow that.
    if any(
        part.external or part.is_virtual or part.file.filename != file.filename for part in parts
    ):
        raise ModelFileError(f"{path} refers to data in other files; only whole files are read.")


def _state_dict(layers: list[Layer], path: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        features = MobileNetV2(num_classes=1).features
    kinds = {
        f"features.{name}": _kind(module)
        for name, module in features.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    }
    sought = Counter(kinds.values())
    found = Counter(layer.kind for layer in layers)
    if any(found[kind] < sought[kind] for kind in sought):
        counts = ", ".join(f"{found[kind]} of {sought[kind]} {kind}" for kind in sought)
        raise ModelFileError(f"{path} is not a MobileNetV2: {counts} layers are there.")

    state: dict[str, Tensor] = {}
    of_kind = {kind: iter([layer for layer in layers if layer.kind == kind]) for kind in sought}
    for name, kind in kinds.items():
        layer = next(of_kind[kind])
        if kind == "norm":
            for part, data in zip(NORM_PARTS, layer.parts, strict=True):
                state[f"{name}.{part}"] = _tensor(data)
        else:
            # Height × width × in × out; depthwise kernels have their channels at "in".
            kernel = _tensor(layer.parts[0])
            order = (2, 3, 0, 1) if kind == "depthwise" else (3, 2, 0, 1)
            state[f"{name}.weight"] = kernel.permute(order).contiguous()

    dense = [layer for layer in layers if layer.kind == "dense"]
    for layer in dense:
        name = "classifier.1" if len(dense) == 1 else layer.name
        state[f"{name}.weight"] = _tensor(layer.parts[0]).t().contiguous()
        state[f"{name}.bias"] = _tensor(layer.parts[1])
    return state


def _kind(module: nn.Conv2d | nn.BatchNorm2d) -> str:
    if isinstance(module, nn.BatchNorm2d):
        return "norm"
    return "depthwise" if module.groups > 1 else "conv"


def _tensor(data: Any) -> Tensor:
    return torch.from_numpy(np.asarray(data, dtype=np.float32))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
