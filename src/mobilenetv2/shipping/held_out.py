"""Pictures that a file is proven on: as they are, and as the classifier prepares them."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import DataConfig
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.named_sets import NAMES, read_named_set
from mobilenetv2.data.pictures import read_picture
from mobilenetv2.data.resizing import resize_and_crop
from mobilenetv2.data.sources import load_data, load_for_measuring
from mobilenetv2.errors import ConfigError, DataError, ModelFileError
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.training.load import own_data

ENOUGH = 256
"""Fewer pictures prove little; the certificate then says so."""
MOST = 10_000
MOST_PHOTOS = 2_000  # above SMALL_PIXELS each
SMALL_PIXELS = 128 * 128
BATCH = 32


@dataclass(frozen=True)
class HeldOut:
    """Labelled pictures that the classifier did not learn from.

    Attributes:
        name: what they are, in words.
        prepared: as the classifier sees them, with labels.
        originals: uint8 N×H×W×3, or the files; as an exported file sees them.
        wanted: shorter side in pixels at which large JPEGs may be decoded.
    """

    name: str
    prepared: LabelledPictures
    originals: Array | Sequence[Path]
    wanted: int

    def __len__(self) -> int:
        return len(self.prepared)

    @property
    def labels(self) -> Array:
        """int64 N."""
        labels: Array = self.prepared.labels.numpy()
        return labels

    def batches(self) -> Iterator[Array]:
        """Every original once, in order, in batches of one size: uint8 n×H×W×3."""
        if isinstance(self.originals, np.ndarray):
            for start in range(0, len(self), BATCH):
                yield self.originals[start : start + BATCH]
            return
        for path in self.originals:
            yield np.array(read_picture(path, "RGB", at_least=self.wanted))[None]

    def fitted(
        self, classifier: Classifier, size: tuple[int, int], resize: int | None = None
    ) -> "HeldOut":
        """The same pictures, brought to one size (height, width) before anybody sees them.

        Args:
            classifier: prepares the pictures of that size.
            size: of every picture.
            resize: pixels of the shorter side before cropping; just what covers ``size`` if left
                out.
        """
        fitted = []
        for original in (one for few in self.batches() for one in few):
            height, width = original.shape[:2]
            scale = max(size[0] / height, size[1] / width)
            side = resize or math.ceil(min(height, width) * scale)
            fitted.append(np.array(resize_and_crop(Image.fromarray(original), *size, side)))
        return replace(self, originals=np.stack(fitted)).prepared_by(classifier)

    def prepared_by(self, classifier: Classifier) -> "HeldOut":
        """The same pictures, prepared from the very pixels that an exported file gets."""
        prepared = [classifier.prepare(one) for few in self.batches() for one in few]
        return replace(self, prepared=replace(self.prepared, pictures=torch.stack(prepared)))

    def first(self, count: int) -> "HeldOut":
        """The first pictures alone."""
        return self.select(torch.arange(min(count, len(self))))

    def some(self, count: int) -> "HeldOut":
        """At most so many pictures, drawn from all of them, always the same ones."""
        if len(self) <= count:
            return self
        chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(self))[:count].copy())
        return self.select(chosen.sort().values)

    def select(self, indices: torch.Tensor) -> "HeldOut":
        """The pictures at ``indices`` (int64), in that order."""
        if isinstance(self.originals, np.ndarray):
            originals: Array | Sequence[Path] = self.originals[indices.numpy()]
        else:
            originals = [self.originals[index] for index in indices.tolist()]
        return replace(self, prepared=self.prepared.select(indices), originals=originals)


def held_out(
    classifier: Classifier,
    model: Path,
    data: str | None,
    data_dir: Path | None,
    tell: Callable[[str], object] = lambda _: None,
) -> HeldOut:
    """Pictures to prove an export of ``classifier`` on.

    Args:
        classifier: gives preparation and labels.
        model: where it came from.
        data: a name or a folder; the run's own test set, else its validation set, if left out.
        data_dir: where named sets lie.
        tell: takes a line for the user, where there is something to wait for.

    Raises:
        ConfigError: no data was named, and that of the model's run is unknown or cannot be used.
        DataError: the data that was named cannot be used, or has classes that the classifier does
            not know.
    """
    if data is not None:
        return _read(classifier, DataConfig(data=data, data_dir=data_dir), tell, is_own=False)
    try:
        return _read(classifier, own_data(model, data_dir), tell, is_own=True)
    except ModelFileError as error:
        raise ConfigError(f"--verify: name a data set or a folder. {error}") from error
    except DataError as error:
        raise ConfigError(
            f"{model}: the pictures of its run cannot be used here; name others with --verify: "
            f"{error}"
        ) from error


def _read(
    classifier: Classifier, config: DataConfig, tell: Callable[[str], object], *, is_own: bool
) -> HeldOut:
    """The pictures of ``config``; of a run's own folder, what was held out from training."""
    wanted = classifier.preprocessing
    if config.data in NAMES:
        name, prepared = load_for_measuring(config, wanted, classifier.labels, tell)
        originals: Array | Sequence[Path] = _to_rgb(read_named_set(config).test[0])
    elif not is_own:
        name, prepared = load_for_measuring(config, wanted, classifier.labels, tell)
        originals = [Path(file) for file in prepared.names]
    else:
        own = load_data(config, wanted, tell)
        name, prepared = ("validation", own.val) if own.test is None else ("test", own.test)
        originals = [Path(file) for file in prepared.names]
    found = HeldOut(f"{config.data}, {name} set", prepared, originals, wanted.resize)
    small = isinstance(originals, np.ndarray) and originals[0].size <= 3 * SMALL_PIXELS
    most = MOST if small else MOST_PHOTOS
    found = found.some(most)
    # A colour JPEG's own brightness may be a step away from that of its RGB pixels.
    from_files = not isinstance(originals, np.ndarray)
    return found.prepared_by(classifier) if from_files and wanted.colour == "grey" else found


def _to_rgb(pictures: Array) -> Array:
    """uint8 N×H×W or N×H×W×3 to N×H×W×3."""
    if pictures.ndim == 4:
        return pictures
    return np.repeat(pictures[..., None], 3, axis=3)
