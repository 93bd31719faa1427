"""An export in 8 bits: the ladder first, then the proof on pictures that chose nothing."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import ExportConfig
from mobilenetv2.data.sources import load_data
from mobilenetv2.errors import DataError, ModelFileError
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.processor import weight_bits
from mobilenetv2.runtimes.sessions import Session
from mobilenetv2.shipping import ladder
from mobilenetv2.shipping.certificate import Certificate
from mobilenetv2.shipping.export import (
    FORMATS,
    LADDER,
    Unproven,
    export,
    file_size,
    libraries,
    threshold,
)
from mobilenetv2.shipping.formats import Content, Format
from mobilenetv2.shipping.held_out import ENOUGH, HeldOut
from mobilenetv2.shipping.quantize import calibration
from mobilenetv2.training.load import own_data

if TYPE_CHECKING:
    import onnx

MOST = 1024
"""Training pictures to calibrate and to train with rounding on."""


def export_int8(
    config: ExportConfig,
    classifier: Classifier,
    pictures: HeldOut,
    path: Path,
    console: Console,
    notes: Sequence[str] = (),
) -> Certificate:
    """Quantise, prove and deliver; arguments as for :func:`export`.

    Where there are enough pictures, half of them choose among the rungs and the other half prove.

    Raises:
        Unproven: no rung keeps the floor; nothing was delivered.
        UserError: as :func:`export`.
    """
    require(*libraries(config))
    notes = list(notes)
    choosing, proving = pictures, pictures
    if len(pictures) >= 2 * ENOUGH:
        order = torch.arange(len(pictures))
        choosing, proving = pictures.select(order[::2]), pictures.select(order[1::2])
    else:
        notes.append("the pictures that prove the file also chose how it was quantised")
    try:
        learned = training_pictures(config.model, config.source.data_dir, classifier)
    except DataError as error:
        learned = shuffled(choosing.prepared.pictures)  # a folder's are sorted by class
        notes.append(f"calibrated on pictures that chose how it was quantised: {error}")
    content = Content(classifier, config.raw, "int8")
    floor = threshold(config, content)
    form = FORMATS[config.format]
    whole = file_size(form, replace(content, precision="fp32"))
    with TemporaryDirectory() as folder:
        rungs = ladder.climb(
            classifier,
            choosing,
            calibration(classifier, learned),
            floor,
            config.raw,
            as_delivered(form, content, Path(folder)),
            lambda core: file_size(form, replace(content, core=core)) / whole,
            lambda rung: console.print(f"{rung.name}: {rung.comparison.accuracy:.2%}", style="dim"),
        )
    console.print(ladder.table(rungs, floor))
    taken = rungs[-1]
    if not taken.holds(floor):
        reasons = "; ".join(taken.comparison.failures(floor))
        raise Unproven(
            f"{path}: not delivered: no way to quantise keeps the floor; the best, {taken.name}: "
            f"{reasons}. Allow more with --max-drop, or use --fp16"
        )
    notes.append(f"quantised: {taken.name}")
    if weight_bits() == 8:
        notes.append("proven where 8 bits are summed exactly; x86 without VNNI answers differently")
    else:
        notes.append("weights in 7 of their 8 bits, as x86 without VNNI needs")
    too_large = ladder.size_note(rungs)
    if too_large:
        notes.append(too_large)
    return export(
        config,
        classifier,
        proving,
        path,
        Content(classifier, config.raw, "int8", core=taken.core),
        notes,
        {LADDER: ladder.figure(rungs, floor)},
    )


def as_delivered(form: Format, content: Content, folder: Path) -> ladder.Opened:
    """How the ladder runs a network: from a file, since writing one may round what it holds.

    With its preparation too: 8 bits are coarse enough to make a label of what float32 leaves open.

    Args:
        form: of the file.
        content: for which it is.
        folder: for the files; they must stay as long as what runs them.
    """
    numbers = itertools.count()

    def opened(core: "onnx.ModelProto", *, raw: bool) -> Session:
        written = form.write(replace(content, core=core, raw=raw), folder, f"rung-{next(numbers)}")
        return form.open(written)

    return opened


def training_pictures(model: Path, data_dir: Path | None, classifier: Classifier) -> Tensor:
    """Prepared pictures that a run learned from, uint8 N×C×H×W.

    Args:
        model: the run, or a file in it.
        data_dir: where named sets lie.
        classifier: prepares them.

    Raises:
        DataError: no run is known, or its data cannot be used.
    """
    try:
        data = own_data(model, data_dir)
    except ModelFileError as error:
        raise DataError(f"no run is known: {error}") from error
    wanted = classifier.preprocessing
    train = load_data(data, wanted).train.centre((wanted.height, wanted.width))
    return shuffled(train.pictures)[:MOST]


def shuffled(pictures: Tensor) -> Tensor:
    """The same pictures in an order that is always the same."""
    return pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))]
