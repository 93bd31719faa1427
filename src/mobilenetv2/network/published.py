"""The published ImageNet weights: where they are, and how they were trained."""

from pathlib import Path

from mobilenetv2.errors import ModelFileError
from mobilenetv2.network.downloads import Progress, fetch
from mobilenetv2.network.keras_weights import require_h5py
from mobilenetv2.network.weights import WeightsInfo
from mobilenetv2.network.weights_files import read_weights_file

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


def fetch_published(
    name: str,
    width: float,
    image_size: tuple[int, int],
    top: bool,
    cache: Path,
    base_url: str | None,
    progress: Progress | None,
) -> tuple[Path, WeightsInfo]:
    """The file of one of ``NAMES`` and how it was trained; arguments as of ``find_weights``.

    Raises:
        ModelFileError: there are none of that width, or they cannot be downloaded.
        UserError: h5py, which reads Keras', is not installed.
    """
    if name == "imagenet" and width == 1.0:
        return _fetch_torchvision(cache, base_url, progress)
    return _fetch_keras(width, image_size, top, cache, base_url, progress)


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
        f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{float(width)}_{size}"
        f"{'' if top else '_no_top'}.h5"
    )
    require_h5py(name)  # or it would be downloaded in vain
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
