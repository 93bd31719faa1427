"""An export as a page: the ONNX file is proven, and then the whole folder moved into place."""

import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from rich.console import Console

from mobilenetv2.classifier import Classifier
from mobilenetv2.command_config import ExportConfig
from mobilenetv2.errors import ConfigError, WorkFailed
from mobilenetv2.evaluation.metrics import Array
from mobilenetv2.runtimes.installed import require
from mobilenetv2.runtimes.sessions import onnxruntime_session
from mobilenetv2.shipping import drawing_style
from mobilenetv2.shipping.certificate import Certificate
from mobilenetv2.shipping.drawing_style import DrawingStyle
from mobilenetv2.shipping.export import (
    Unproven,
    export,
    records_of,
    require_absent,
    require_writable,
)
from mobilenetv2.shipping.held_out import HeldOut
from mobilenetv2.shipping.int8 import export_int8
from mobilenetv2.shipping.proof import file_logits
from mobilenetv2.shipping.web_page import (
    MODEL,
    Measured,
    Page,
    made_here,
    strangers,
    write_page,
)
from mobilenetv2.shipping.web_runtime import check_assets


def page_folder(config: ExportConfig) -> Path:
    """Where the page will lie.

    Raises:
        ConfigError: the place cannot be written, or holds something that must not be replaced.
    """
    model = config.model
    precision = "" if config.precision == "fp32" else f"-{config.precision}"
    if config.out is not None:
        path = config.out
    elif model.is_dir():
        path = model / f"web{precision}"
    else:
        path = model.parent / f"{model.name.split('.')[0]}{precision}-web"
    require_writable(path)
    _may_be_replaced(path, overwrite=config.overwrite)
    require_absent(records_of(path, config), config)
    return path


def _may_be_replaced(path: Path, *, overwrite: bool) -> None:
    """Only an empty folder may, and a page of ours with nothing else in it, if asked."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise ConfigError(f"{path}: is there already and is no folder; name another with --out")
    if not any(path.iterdir()):
        return
    if not made_here(path):
        raise ConfigError(
            f"{path}: holds files that are no page of this program, and is left alone, even with "
            "--overwrite; name a new folder with --out"
        )
    if not overwrite:
        raise ConfigError(
            f"{path}: is there already; name another folder with --out, or add --overwrite"
        )
    added = strangers(path)
    if added:
        raise ConfigError(
            f"{path}: holds {', '.join(added[:3])}{', …' if len(added) > 3 else ''} beside the "
            "page; move that away first, or name a new folder with --out"
        )


def export_page(
    config: ExportConfig,
    classifier: Classifier,
    pictures: HeldOut,
    path: Path,
    console: Console,
    notes: Sequence[str] = (),
) -> Certificate:
    """Prove the model, write the page around it, and deliver the folder with its certificate.

    Args:
        config: what was asked for.
        classifier: what is exported.
        pictures: to prove it on, and to see what drawings look like.
        path: where the folder goes, from :func:`page_folder`.
        console: for the ladder of an 8-bit network.
        notes: for the certificate.

    Raises:
        Unproven: the model does not meet its thresholds; nothing was delivered.
        UserError: a library is missing, or ``--assets`` lacks files.
        WorkFailed: the folder cannot be written.
    """
    require("onnx", "onnxruntime")
    if config.page.assets is not None:
        check_assets(config.page.assets)
    as_onnx = config.model_copy(update={"format": "onnx"})
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as name:
            folder = Path(name) / "page"
            folder.mkdir()
            model = folder / MODEL
            try:
                certificate = (
                    export_int8(as_onnx, classifier, pictures, model, console, notes)
                    if config.int8
                    else export(as_onnx, classifier, pictures, model, notes=notes)
                )
            except Unproven as error:
                raise Unproven(str(error).replace(str(model), str(path))) from error
            page = Page(
                name=page_name(config.model),
                classifier=classifier,
                sure=config.page.sure,
                drawing=style_of(classifier, pictures),
                measured=measured(model, classifier, pictures, config.page.sure),
                assets=config.page.assets,
            )
            beside = [file for file in folder.iterdir() if file != model]
            for file in beside:  # the certificate, which names local folders, is not published
                file.rename(Path(name) / file.name)
            write_page(page, folder)
            for file in beside:
                ending = file.name.removeprefix(MODEL)
                (Path(name) / file.name).replace(path.with_name(path.name + ending))
            _move_into_place(folder, path)
    except OSError as error:
        raise WorkFailed(f"{path}: cannot be written ({error.strerror or error})") from error
    return certificate


def page_name(model: Path) -> str:
    """What the page is called: as the run folder, or a file that lies in none."""
    path = model.resolve()
    if path.is_dir():
        return path.name
    in_run = (path.parent / "config.yaml").is_file()
    return path.parent.name if in_run else path.name.split(".")[0]


def style_of(classifier: Classifier, pictures: HeldOut | None) -> DrawingStyle | None:
    """What drawings look like, for a classifier that may be meant for them."""
    if classifier.preprocessing.colour != "grey":
        return None
    if pictures is None:
        return DrawingStyle()
    return drawing_style.measure(pictures.prepared.pictures[:, 0].numpy())


def measured(model: Path, classifier: Classifier, pictures: HeldOut, sure: float) -> Measured:
    """What comes of answering only from a probability of ``sure`` on."""
    logits = file_logits(onnxruntime_session(model), classifier, pictures)
    best = _best_probability(logits)
    right = logits.argmax(1) == pictures.labels
    answered = best >= sure
    return Measured(
        data=PurePath(pictures.name).name,  # without the folders above it
        pictures=len(pictures),
        accuracy=float(right.mean()),
        answered=float(answered.mean()),
        right=float(right[answered].mean()) if answered.any() else 0.0,
    )


def _best_probability(logits: Array) -> Array:
    """Logits N×K to the largest probability of each, N."""
    shares: Array = np.exp(logits - logits.max(1, keepdims=True))
    best: Array = shares.max(1) / shares.sum(1)
    return best


def _move_into_place(folder: Path, path: Path) -> None:
    """Put a finished folder where it belongs; what was there goes, or stays if that fails."""
    old = folder.with_name("old")
    if path.exists():
        path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
