"""An export proves itself before it exists.

The file is written to a folder of its own, run in its own runtime on held-out pictures beside the
classifier, and only then moved to where it was asked for, with the certificate.
"""

import glob
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import ExportConfig
from mobilenetv2.errors import ConfigError, WorkFailed
from mobilenetv2.evaluation import plots
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.sessions import Array, Session
from mobilenetv2.shipping.certificate import Certificate
from mobilenetv2.shipping.formats import Content, Format, picture_size
from mobilenetv2.shipping.held_out import HeldOut
from mobilenetv2.shipping.mobile_file import ExecuTorchFormat, LiteRtFormat
from mobilenetv2.shipping.onnx_file import OnnxFormat
from mobilenetv2.shipping.openvino_file import OpenVinoFormat
from mobilenetv2.shipping.proof import (
    Threshold,
    compare,
    file_logits,
    first_divergence,
    layer_outputs,
    milliseconds,
    reference_logits,
)
from mobilenetv2.shipping.torch_file import TorchFormat

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: dict[str, Format] = {
    "onnx": OnnxFormat(),
    "openvino": OpenVinoFormat(),
    "torch": TorchFormat(),
    "litert": LiteRtFormat(),
    "executorch": ExecuTorchFormat(),
}
SUFFIX, LADDER = ".certificate.json", ".ladder.png"
"""What is added to the name of a file for its certificate, and for the picture of its ladder."""
LAYER_TOLERANCE = 1e-3
"""Share of a layer's largest output from which on it counts as another one, in float32."""


class Unproven(WorkFailed):
    """A file did not answer as its classifier does, and was not delivered."""


def target(config: ExportConfig, form: Format) -> Path:
    """Where the file will lie.

    Raises:
        ConfigError: the place cannot be written, or something is there already.
    """
    if config.out is None:
        model = config.model
        inside = model if model.is_dir() else model.parent
        path = inside / f"{_stem(config)}{form.suffix}"
    else:
        path = config.out
        if path.is_dir():
            path = path / f"{_stem(config)}{form.suffix}"
        elif path.suffix != form.suffix:
            raise ConfigError(f"--out {path}: a file of --format {form.name} ends in {form.suffix}")
    require_writable(path)
    beside = [path.with_suffix(suffix) for suffix in form.beside]
    require_absent([path, *beside, *records_of(path, config)], config)
    return path


def records_of(path: Path, config: ExportConfig) -> list[Path]:
    """What will lie beside an exported file, or a page, to tell about it."""
    endings = (SUFFIX, LADDER) if config.int8 else (SUFFIX,)
    return [path.with_name(path.name + ending) for ending in endings]


def require_absent(files: Sequence[Path], config: ExportConfig) -> None:
    """Make sure that nothing is replaced unasked.

    Raises:
        ConfigError: one of the files is there already.
    """
    present = [file for file in files if file.exists()]
    if present and not config.overwrite:
        raise ConfigError(
            f"{present[0]}: is there already; give another name with --out, or add --overwrite"
        )


def require_writable(path: Path) -> None:
    """Make sure that something can be put there.

    Raises:
        ConfigError: the folder around it is not there, or cannot be written.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--out {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--out {path}: {path.parent} cannot be written; name another place")


def libraries(config: ExportConfig) -> tuple[str, ...]:
    """What has to be installed for an export."""
    if config.format == "web":
        return ("onnx", "onnxruntime")
    needed = FORMATS[config.format].libraries
    return tuple(dict.fromkeys((*needed, "onnx", "onnxruntime"))) if config.int8 else needed


def export(
    config: ExportConfig,
    classifier: Classifier,
    pictures: HeldOut,
    path: Path,
    content: Content | None = None,
    notes: Sequence[str] = (),
    figures: Mapping[str, "Figure"] | None = None,
) -> Certificate:
    """Write a file, prove it, and deliver it with its certificate.

    Args:
        config: what was asked for.
        classifier: what is exported.
        pictures: to prove it on.
        path: where the file goes, from :func:`target`.
        content: what is written, if it is not the classifier as it is.
        notes: for the certificate.
        figures: to lie beside the file, by the ending of their names.

    Raises:
        Unproven: the file does not meet its thresholds; nothing was delivered.
        UserError: a library is missing, or the format cannot hold what was asked for.
        WorkFailed: the file cannot be written.
    """
    form = FORMATS[config.format]
    require(*form.libraries)
    if content is None:
        content = Content(classifier, config.raw, config.precision, config.picture_size)
    if form.fixed_size and not content.raw:
        resize = None if config.picture_size else classifier.preprocessing.resize
        pictures = pictures.fitted(classifier, picture_size(content), resize)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            written = form.write(content, Path(folder), path.stem)
            certificate = prove(form, written, content, pictures, config, notes)
            if certificate.failures:
                where = divergent_layer(form, written, content, pictures)
                raise Unproven(
                    f"{path}: not delivered: {'; '.join(certificate.failures)}. "
                    + (f"The first layer that diverges is {where}." if where else
                       "No single layer stands out.")
                )  # fmt: skip
            for ending, figure in (figures or {}).items():
                plots.save(figure, Path(folder) / f"{path.name}{ending}")
            certificate.write(Path(folder) / f"{path.name}{SUFFIX}")
            for file in sorted(Path(folder).iterdir(), key=lambda file: file == written):
                file.replace(path.parent / file.name)  # the file itself last
    except OSError as error:
        raise WorkFailed(f"{path}: cannot be written ({error.strerror or error})") from error
    return certificate


def prove(
    form: Format,
    written: Path,
    content: Content,
    pictures: HeldOut,
    config: ExportConfig,
    notes: Sequence[str] = (),
) -> Certificate:
    """Run a written file beside its classifier."""
    classifier = content.classifier
    run = form.open(written)
    logits = file_logits(run, classifier, pictures, raw=content.raw)
    reference = reference_logits(classifier, pictures)
    plain = replace(content, precision="fp32", core=None)
    return Certificate(
        file=written.name,
        format=f"{form.name}, {content.precision}{', network alone' if content.raw else ''}",
        runtime=form.runtime(),
        model=str(config.model),
        data=pictures.name,
        comparison=compare(reference, logits, pictures.labels),
        threshold=threshold(config, content),
        size=size_of(written),
        reference_size=None if content.precision == "fp32" else file_size(form, plain),
        latency=_latencies(form, run, content, pictures),
        notes=tuple(notes),
    )


def threshold(config: ExportConfig, content: Content) -> Threshold:
    """What is required of this content."""
    if content.precision == "fp32":
        return Threshold(config.max_difference, 1.0, None)
    return Threshold(None, 0.98, config.max_drop)


def divergent_layer(form: Format, written: Path, content: Content, pictures: HeldOut) -> str | None:
    """The first layer of a written file that gives something else than the classifier's."""
    few = pictures.first(4)
    classifier = content.classifier
    tolerance = LAYER_TOLERANCE if content.precision == "fp32" else 0.1
    found: str | None = None
    for index in range(len(few)):
        one = few.select(torch.tensor([index]))
        reference = layer_outputs(classifier, one.prepared.pictures)
        run = form.open_layers(written, reference)
        if run is None:
            return None
        inputs = (
            classifier.normalize(one.prepared.pictures).numpy()
            if content.raw
            else next(one.batches())
        )
        found = first_divergence(reference, run(inputs), tolerance)
        if found:
            break
    return found


def size_of(written: Path) -> int:
    """Bytes of a file and of the weights beside it."""
    own = f"{glob.escape(written.stem)}.*"
    return sum(file.stat().st_size for file in written.parent.glob(own))


def file_size(form: Format, content: Content) -> int:
    """Bytes that this content would take."""
    with tempfile.TemporaryDirectory() as folder:
        return size_of(form.write(content, Path(folder), "sized"))


def _latencies(form: Format, run: Session, content: Content, pictures: HeldOut) -> dict[str, float]:
    """Milliseconds for one picture: the file, and the classifier on the same prepared picture."""
    classifier = content.classifier
    prepared = pictures.prepared.pictures[:1]
    inputs: Array = (
        classifier.normalize(prepared).numpy() if content.raw else next(pictures.batches())[:1]
    )
    name = form.runtime() + ("" if content.raw else ", preparation included")
    return {
        name: milliseconds(lambda: run(inputs)),
        "PyTorch eager, prepared": milliseconds(lambda: classifier.logits(prepared)),
    }


def _stem(config: ExportConfig) -> str:
    ending = "" if config.precision == "fp32" else f"-{config.precision}"
    name = "model" if config.model.is_dir() else config.model.name.split(".")[0]
    return f"{name}{'-raw' if config.raw else ''}{ending}"
