"""Published weights, and weights files of your own, under this network's names.

In use::

    weights = find_weights("imagenet", cache=Path("~/.cache/mobilenetv2").expanduser(), width=0.35)
    info = weights.info
    network = MobileNetV2(2, width=info.width, padding=info.padding, norm_eps=info.norm_eps)
    print(load_weights(network, weights))

Weights are of use only in the network that they were trained in: ``weights.info`` says how it pads,
which epsilon its batch norms have and how its pictures were normalised.
"""

import difflib
import functools
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mobilenetv2.errors import ModelFileError
from mobilenetv2.network.downloads import Progress, fetch
from mobilenetv2.network.keras_weights import LARGEST_FILE, read_keras
from mobilenetv2.network.mobilenetv2 import KerasPaddedConv2d, MobileNetV2, Padding

Convention = Literal["torchvision", "keras"]

NAMES = ("imagenet", "imagenet-keras")
"""Weights that are fetched by name; everything else is a file."""

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
KERAS_SIZES = {
    0.35: (96, 128, 160, 192, 224),
    0.5: (96, 128, 160, 192, 224),
    0.75: (96, 128, 160, 192, 224),
    1.0: (96, 128, 160, 192, 224),
    1.3: (224,),
    1.4: (224,),
}
"""Picture sizes that Keras' weights were trained at, for each width."""

WIDTHS = (0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
"""Widths that a file is recognised by."""

WRAPPERS = ("module.", "_orig_mod.", "network.", "model.")
"""Prefixes that DataParallel, torch.compile and owners of a network put before the names."""

CLASSIFIER_KEY = "mobilenetv2"
"""Metadata of a classifier that this package saved, as JSON."""

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "network", "net")


@dataclass(frozen=True)
class WeightsInfo:
    """What a network and its preprocessing must be like for the weights to be right.

    Attributes:
        origin: where the weights are from, for people.
        licence: of the weights; None where unknown.
        width: multiplier of the channels.
        in_channels: of the pictures.
        num_classes: of the classifier; None where the weights have none.
        padding: option of :class:`MobileNetV2`.
        norm_eps: option of :class:`MobileNetV2`.
        mean: to be subtracted from pixels in [0, 1], one per channel.
        std: to divide by after that.
        image_size: side of the pictures in training; None where unknown.
        resize_size: shorter side before the centre crop to ``image_size``; None where unknown.
    """

    origin: str
    licence: str | None = None
    width: float = 1.0
    in_channels: int = 3
    num_classes: int | None = None
    padding: Padding = "symmetric"
    norm_eps: float = 1e-5
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    image_size: int | None = None
    resize_size: int | None = None

    def trained_by(self, convention: Convention) -> "WeightsInfo":
        """The same with the options that torchvision or Keras trains with."""
        if convention == "keras":
            half = (0.5, 0.5, 0.5)
            return replace(self, padding="keras", norm_eps=1e-3, mean=half, std=half)
        default = WeightsInfo(self.origin)
        return replace(self, padding="symmetric", norm_eps=1e-5, mean=default.mean, std=default.std)


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors under this network's names, and what they need."""

    info: WeightsInfo
    tensors: Mapping[str, Tensor]


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


def find_weights(
    name_or_path: str | Path,
    cache: Path,
    *,
    width: float | None = None,
    image_size: tuple[int, int] = (224, 224),
    in_channels: int = 3,
    top: bool = False,
    convention: Convention | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> Weights:
    """Reads weights by name, downloading them at first use, or from a file.

    ``imagenet`` is torchvision's second version for width 1.0 and Keras' for the other widths;
    ``imagenet-keras`` is Keras' for every width. Of Keras' weights those are taken that were
    trained at the size nearest to ``image_size``.

    A file is ``.pth``, ``.pt`` or ``.tar`` (a state dict, or a dict that holds one),
    ``.safetensors`` or Keras' ``.h5``. It rarely says how it was trained. Unless ``convention``
    does, an ``.h5`` is Keras', a ``.safetensors`` what its metadata tell (those of a saved
    classifier, or ``padding``, "keras" or "symmetric", and ``norm_eps``), and everything else is
    taken for torchvision's.

    For grey pictures (``in_channels=1``) the weights of an RGB network are converted: see
    :func:`to_grey`.

    Args:
        name_or_path: a name or a file.
        cache: folder for downloads.
        width: what the weights must fit; None takes the file's, and 1.0 for a name.
        image_size: height and width of the pictures in pixels.
        in_channels: 3, or 1 for grey.
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
        if name_or_path == "imagenet" and width == 1.0:
            path, info = _fetch_torchvision(cache, base_url, progress)
        else:
            path, info = _fetch_keras(width, image_size, top, cache, base_url, progress)
        tensors, _ = read_weights_file(path)
    else:
        path = _existing(Path(name_or_path))
        tensors, metadata = read_weights_file(path)
        info = _info_of_file(path, metadata, convention)

    info = _completed(info, tensors, width, path)
    weights = Weights(info, tensors)
    if info.in_channels == in_channels:
        return weights
    if info.in_channels == 3 and in_channels == 1:
        return to_grey(weights)
    raise ModelFileError(
        f"{path} has weights for pictures of {info.in_channels} channels, not of {in_channels}."
    )


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
    fresh = [name for name in own if name not in fitting and not _is_counter(name)]
    if any(name.startswith("features.") for name in fresh):
        raise ValueError(f"the network's shapes are not those of {weights.info.origin}: {fresh}")
    network.load_state_dict(fitting, strict=False)
    unused = [name for name in weights.tensors if name not in fitting]
    return LoadReport(weights.info.origin, tuple(fitting), tuple(fresh), tuple(unused))


def to_grey(weights: Weights) -> Weights:
    """RGB weights for grey pictures: the answer is that for the grey picture's RGB copy.

    With the means m_c and deviations s_c of the three channels, a grey value g reaches the stem as
    (g - m_c) / s_c. Normalised once, z = (g - m) / s with the channels' average m and s, the same
    sum is the kernel Σ s / s_c · w_c over z, plus the constant Σ (m - m_c) / s_c · w_c, which the
    running mean of the batch norm behind the stem takes up.

    For Keras' normalisation the constant is zero and the answers are equal. For torchvision's they
    are equal but for the pictures' outermost pixels: padding adds zeros, the average colour, and
    that is not grey there. Measured on 40 photos with trained weights of width 0.35, that moved the
    pooled features by 1.2 % at 224 px and by 2.9 % at 96 px.
    """
    info = weights.info
    mean, std = torch.tensor([info.mean, info.std], dtype=torch.float64)
    kernel = weights.tensors["features.0.0.weight"].double()
    scale = (std.mean() / std).view(1, -1, 1, 1)
    shift = ((mean.mean() - mean) / std).view(1, -1, 1, 1)
    constant = (kernel * shift).sum((1, 2, 3))
    tensors = dict(weights.tensors)
    tensors["features.0.0.weight"] = (kernel * scale).sum(1, keepdim=True).float()
    tensors["features.0.1.running_mean"] = (
        weights.tensors["features.0.1.running_mean"] - constant
    ).float()
    return Weights(_averaged(info, 1), tensors)


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file under this network's names, and the file's metadata if it has any.

    No code of the file is run: pickles may hold tensors and plain containers, nothing else.

    Raises:
        ModelFileError: the file is damaged, dangerous, or not a MobileNetV2.
    """
    try:
        if path.stat().st_size == 0:
            raise ModelFileError(f"{path} is empty. Fetch or save it again.")
    except OSError as error:
        raise ModelFileError(f"Could not read {path}: {error}") from error
    metadata: dict[str, str] = {}
    match path.suffix.lower():
        case ".h5" | ".hdf5":
            tensors = read_keras(path)
        case ".safetensors":
            tensors, metadata = _read_safetensors(path)
        case ".pth" | ".pt" | ".tar":
            tensors = _read_torch(path)
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


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
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
    for key in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path} holds no state dict but a {type(content).__name__}.")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


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
        if name.startswith("features.") and not _is_counter(name)
    }


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


def _completed(
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
    return info if len(info.mean) == channels else _averaged(info, channels)


def _averaged(info: WeightsInfo, channels: int) -> WeightsInfo:
    """One normalisation for all of ``channels``: the average of the RGB channels'."""
    mean, std = sum(info.mean) / len(info.mean), sum(info.std) / len(info.std)
    return replace(info, in_channels=channels, mean=(mean,) * channels, std=(std,) * channels)


def _check_options(network: MobileNetV2, info: WeightsInfo) -> None:
    """The network pads and normalises as the weights need it."""
    modules = list(network.features.modules())
    strided = any(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in modules)
    padding = "keras" if any(isinstance(m, KerasPaddedConv2d) for m in modules) else "symmetric"
    if strided and padding != info.padding:
        raise ValueError(f"build the network with padding={info.padding!r} for {info.origin}")
    if any(isinstance(m, nn.BatchNorm2d) and m.eps != info.norm_eps for m in modules):
        raise ValueError(f"build the network with norm_eps={info.norm_eps} for {info.origin}")


def _is_counter(name: str) -> bool:
    """Counts training steps, means nothing to the weights and is absent from Keras' files."""
    return name.endswith("num_batches_tracked")


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    close = difflib.get_close_matches(str(path), NAMES, 1)
    hint = f" Perhaps you meant {close[0]}." if close else ""
    raise ModelFileError(
        f"There are no weights {str(path)!r}: give a file or one of {', '.join(NAMES)}.{hint}"
    )


def _info_of_file(
    path: Path, metadata: Mapping[str, str], convention: Convention | None
) -> WeightsInfo:
    """How a file was trained: as the caller says, as its metadata tell, or as its kind suggests."""
    info = WeightsInfo(metadata.get("origin", path.name))
    if convention is not None:
        return info.trained_by(convention)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return info.trained_by("keras")
    try:
        if CLASSIFIER_KEY in metadata:
            return _info_of_classifier(info, json.loads(metadata[CLASSIFIER_KEY]))
        padding = _padding(metadata.get("padding", "symmetric"))
        info = info.trained_by("keras" if padding == "keras" else "torchvision")
        eps = metadata.get("norm_eps") or metadata.get("bn_eps") or info.norm_eps
        return replace(info, norm_eps=float(eps))
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(
            f"{path} does not tell how it was trained: its metadata are wrong ({error!r})."
        ) from error


def _info_of_classifier(info: WeightsInfo, description: Mapping[str, Any]) -> WeightsInfo:
    """What a saved classifier says of its network and preprocessing."""
    network, preprocessing = description["network"], description["preprocessing"]
    mean = tuple(float(value) for value in preprocessing["mean"])
    std = tuple(float(value) for value in preprocessing["std"])
    width = float(network["width"])
    if not (0 < width < 100 and mean and len(mean) == len(std) and all(s > 0 for s in std)):
        raise ValueError(f"width {width}, mean {mean}, std {std}")
    return replace(
        info,
        width=width,
        padding=_padding(network["padding"]),
        norm_eps=float(network["norm_eps"]),
        mean=mean,
        std=std,
    )


def _padding(name: str) -> Padding:
    match name:
        case "keras" | "tf-same":
            return "keras"
        case "symmetric":
            return "symmetric"
    raise ValueError(f"padding {name!r}")


def _fetch_torchvision(
    cache: Path, base_url: str | None, progress: Progress | None
) -> tuple[Path, WeightsInfo]:
    from torchvision.models import MobileNet_V2_Weights

    published = MobileNet_V2_Weights.IMAGENET1K_V2
    folder, _, name = published.url.rpartition("/")
    transforms = published.transforms()
    path = fetch(
        f"{(base_url or folder).rstrip('/')}/{name}",
        cache / name,
        sha256=Path(name).stem.rpartition("-")[2],
        progress=progress,
    )
    info = WeightsInfo(
        origin="torchvision's MobileNet_V2_Weights.IMAGENET1K_V2",
        licence="BSD-3-Clause",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        image_size=transforms.crop_size[0],
        resize_size=transforms.resize_size[0],
    )
    return path, info


def _fetch_keras(
    width: float,
    image_size: tuple[int, int],
    top: bool,
    cache: Path,
    base_url: str | None,
    progress: Progress | None,
) -> tuple[Path, WeightsInfo]:
    if width not in KERAS_SIZES:
        widths = ", ".join(f"{known:g}" for known in KERAS_SIZES)
        raise ModelFileError(
            f"There are no published ImageNet weights of width {width:g}, only of {widths}. "
            "Take one of these, or train from scratch."
        )
    # Between two sizes the larger: its weights are the better ones.
    size = min(KERAS_SIZES[width], key=lambda known: (abs(2 * known - sum(image_size)), -known))
    name = (
        f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_{size}"
        f"{'' if top else '_no_top'}.h5"
    )
    path = fetch(
        f"{(base_url or KERAS_URL).rstrip('/')}/{name}",
        cache / name,
        check=read_weights_file,
        progress=progress,
    )
    info = WeightsInfo(
        origin=f"Keras' MobileNetV2, width {width:g}, {size} px, ImageNet",
        licence="Apache-2.0",
        image_size=size,
        resize_size=round(size / 0.875),  # the central 87.5 % are what it was evaluated on
    )
    return path, info.trained_by("keras")
