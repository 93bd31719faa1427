"""Published weights, and weights files of your own, in a network.

In use::

    weights = find_weights("imagenet", cache=Path("~/.cache/mobilenetv2").expanduser(), width=0.35)
    info = weights.info
    network = MobileNetV2(2, width=info.width, padding=info.padding, norm_eps=info.norm_eps)
    print(load_weights(network, weights))

Weights are of use only in the network that they were trained in: ``weights.info`` says how it pads,
which epsilon its batch norms have and how its pictures were normalised.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mobilenetv2.errors import ModelFileError
from mobilenetv2.network.downloads import Progress
from mobilenetv2.network.mobilenetv2 import KerasPaddedConv2d, MobileNetV2
from mobilenetv2.network.published import NAMES, fetch_published
from mobilenetv2.network.weights import Convention, Weights, WeightsInfo, for_channels
from mobilenetv2.network.weights_files import (
    completed,
    info_of_file,
    is_counter,
    read_weights_file,
)


def find_weights(
    name_or_path: str | Path,
    cache: Path,
    *,
    width: float | None = None,
    image_size: tuple[int, int] = (224, 224),
    in_channels: int | None = 3,
    top: bool = False,
    convention: Convention | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Reads weights by name, downloading them at first use, or from a file.

    ``imagenet`` is torchvision's second version for width 1.0 and Keras' for the other widths;
    ``imagenet-keras`` is Keras' for every width. Of Keras' weights those are taken that were
    trained at the size nearest to ``image_size``.

    A file is ``.pth``, ``.pt`` or ``.tar`` (a state dict, a dict that holds one, or a checkpoint),
    ``.safetensors`` or Keras' ``.h5``. It rarely says how it was trained. Unless ``convention``
    does, an ``.h5`` is Keras', a ``.safetensors`` or a checkpoint what its metadata tell (those of
    a saved classifier, or ``padding``, "keras" or "symmetric", and ``norm_eps``), and everything
    else is taken for torchvision's.

    For grey pictures (``in_channels=1``) the weights of an RGB network are converted: see
    :func:`.to_grey`.

    Args:
        name_or_path: a name or a file.
        cache: folder for downloads.
        width: what the weights must fit; None takes the file's, and 1.0 for a name.
        image_size: height and width of the pictures in pixels.
        in_channels: 3, or 1 for grey; None takes the file's.
        top: whether Keras' 1000-class head is wanted too; torchvision's file always has it.
        convention: who trained a file: padding, epsilon and normalisation follow from it.
        base_url: another place for the published files.
        progress: is told how far a download is.

    Raises:
        ModelFileError: unknown name, no download, or a file that is damaged, of another network or
            of another width.
        UserError: h5py is needed and not installed.
    """
    if name_or_path in NAMES:
        width = 1.0 if width is None else width
        path, info = fetch_published(
            str(name_or_path), width, image_size, top, cache, base_url, progress
        )
        tensors, _ = read_weights_file(path)
    else:
        path = _existing(Path(name_or_path))
        tensors, metadata = read_weights_file(path)
        info = info_of_file(path, metadata, convention)

    info = completed(info, tensors, width, path)
    weights = Weights(info, tensors)
    return weights if in_channels is None else for_channels(weights, in_channels)


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors.

    Attributes:
        origin: where the weights are from.
        loaded: names in the network that have the weights now.
        fresh: names in the network that keep their initial values.
        unused: names in the weights that the network has no place for.

    >>> print(LoadReport("mine.pth", ("features.0.0.weight",), ("classifier.1.bias",), ()))
    1 tensors loaded from mine.pth; fresh in the network: classifier.1.bias
    """

    origin: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors loaded from {self.origin}"
        if self.fresh:
            text += f"; fresh in the network: {', '.join(self.fresh)}"
        if self.unused:
            text += f"; not used of the weights: {', '.join(self.unused)}"
        return text


def load_weights(network: MobileNetV2, weights: Weights) -> LoadReport:
    """Copies the weights into the network; the classifier only if it has as many classes.

    Args:
        network: built as ``weights.info`` says.
        weights: see :func:`find_weights`.

    Raises:
        ValueError: the network differs from what ``weights.info`` says.
    """
    _check_options(network, weights.info)
    own = network.state_dict()
    fitting = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if name in own and own[name].shape == tensor.shape
    }
    # A classifier is loaded whole or not at all.
    if not {"classifier.1.weight", "classifier.1.bias"} <= fitting.keys():
        fitting = {name: t for name, t in fitting.items() if not name.startswith("classifier.")}
    fresh = [name for name in own if name not in fitting and not is_counter(name)]
    if any(name.startswith("features.") for name in fresh):
        raise ValueError(f"the network's shapes are not those of {weights.info.origin}: {fresh}")
    network.load_state_dict(fitting, strict=False)
    unused = [name for name in weights.tensors if name not in fitting]
    return LoadReport(weights.info.origin, tuple(fitting), tuple(fresh), tuple(unused))


def _check_options(network: MobileNetV2, info: WeightsInfo) -> None:
    """The network pads and normalises as the weights need it."""
    modules = list(network.features.modules())
    strided = any(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in modules)
    padding = "keras" if any(isinstance(m, KerasPaddedConv2d) for m in modules) else "symmetric"
    if strided and padding != info.padding:
        raise ValueError(f"build the network with padding={info.padding!r} for {info.origin}")
    if any(isinstance(m, nn.BatchNorm2d) and m.eps != info.norm_eps for m in modules):
        raise ValueError(f"build the network with norm_eps={info.norm_eps} for {info.origin}")


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    close = difflib.get_close_matches(str(path), NAMES, 1)
    hint = f" Perhaps you meant {close[0]}." if close else ""
    raise ModelFileError(
        f"There are no weights {str(path)!r}: give a file or one of {', '.join(NAMES)}.{hint}"
    )
