"""What ``MODEL`` names on the command line, and :func:`mobilenetv2.load` in Python."""

import json
from collections.abc import Sequence
from pathlib import Path

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import DataConfig
from mobilenetv2.errors import ModelFileError
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.run_folder import RunFolder

EXPORTED = {".onnx", ".xml", ".bin", ".pt2", ".tflite", ".pte", ".html"}
"""Files that :func:`mobilenetv2.shipping.export.export` writes and nothing here reads."""


def load(model: str | Path) -> Classifier:
    """The classifier in a run folder, a ``.safetensors`` file or a ``.pth.tar`` checkpoint.

    A run that is not finished gives its best epoch so far.

    Raises:
        ModelFileError: there is nothing there, or no classifier in it. No code in it ever runs,
            and no other file is opened because it says so.
    """
    path = Path(model)
    if path.is_dir():
        return _from_run(RunFolder.open(path))
    if not path.exists():
        raise ModelFileError(f"{path}: there is no such run folder or model file")
    if path.suffix == ".safetensors":
        return Classifier.load(path)
    if path.suffix in EXPORTED:
        raise ModelFileError(
            f"{path}: an exported file is for other programs; name the run folder or its "
            "model.safetensors"
        )
    return Checkpoint.load(path).build_classifier(str(path))


def unfinished(model: Path) -> str:
    """A remark where ``model`` is a run that has not ended; nothing otherwise."""
    if not model.is_dir() or RunFolder(model).model.exists():
        return ""
    return f"{model}: this run has not ended; its best epoch so far was taken"


def own_data(model: Path, directory: Path | None) -> DataConfig:
    """The data that the run behind ``model`` was trained on.

    Args:
        model: a run folder, or a file in one.
        directory: where named sets lie now, if elsewhere than then.

    Raises:
        ModelFileError: the model lies in no run folder, so nobody knows its data.
    """
    folder = RunFolder(model if model.is_dir() else model.parent)
    if not folder.config.is_file():
        raise ModelFileError(
            f"{model}: lies in no run folder, so its data is unknown; name the data too"
        )
    config = folder.read_config().data
    return config if directory is None else config.model_copy(update={"data_dir": directory})


def own_counts(model: Path) -> Sequence[int] | None:
    """How many pictures of each class the run behind ``model`` was measured on at its end.

    Those of its test set, else of its validation set; None where no ``result.json`` tells.
    """
    folder = RunFolder(model if model.is_dir() else model.parent)
    try:
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        return [int(row["pictures"]) for row in result["classes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _from_run(folder: RunFolder) -> Classifier:
    if folder.model.exists():
        return Classifier.load(folder.model)
    for checkpoint in (folder.best, folder.last, folder.previous):
        if checkpoint.exists():
            return Checkpoint.load(checkpoint).build_classifier(str(checkpoint))
    raise ModelFileError(f"{folder.path}: this run has not saved a model yet")
