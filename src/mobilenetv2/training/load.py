"""What ``MODEL`` names on the command line, and :func:`mobilenetv2.load` in Python."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import DataConfig
from mobilenetv2.errors import ConfigError, ModelFileError
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.run_folder import RunFolder

EXPORTED = {".onnx", ".xml", ".bin", ".pt2", ".tflite", ".pte", ".html"}
"""Files that :func:`mobilenetv2.shipping.export.export` writes and nothing here reads."""


def load(model: str | Path, tell: Callable[[str], object] = lambda _: None) -> Classifier:
    """The classifier in a run folder, a ``.safetensors`` file or a ``.pth.tar`` checkpoint.

    A run that is not finished gives the epoch that it would keep so far, and before the first has
    ended what it has saved since.

    Args:
        model: what is named.
        tell: takes a line for the user where the classifier is not what a run had at its end.

    Raises:
        ModelFileError: there is nothing there, or no classifier in it, or nothing is learned yet.
            No code in it ever runs, and no other file is opened because it says so.
    """
    path = Path(model)
    if path.is_dir():
        return _from_run(RunFolder.open(path), tell)
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


def own_data(model: Path, directory: Path | None) -> DataConfig:
    """The data that the run behind ``model`` was trained on.

    Args:
        model: a run folder, or a file in one.
        directory: where named sets lie now, if elsewhere than then.

    Raises:
        ModelFileError: the model lies in no run folder, or the settings there cannot be used, so
            nobody knows its data.
    """
    folder = RunFolder(model if model.is_dir() else model.parent)
    if not folder.config.is_file():
        raise ModelFileError(
            f"{model}: lies in no run folder, so its data is unknown; name the data too"
        )
    try:
        config = folder.read_config().data
    except ConfigError as error:
        raise ModelFileError(
            f"{model}: its data is unknown; name the data too. What lies beside it says: {error}"
        ) from error
    return config if directory is None else config.model_copy(update={"data_dir": directory})


def own_counts(model: Path) -> Sequence[int] | None:
    """How many pictures of each class the run behind ``model`` was measured on at its end.

    Those of its test set, else of its validation set; None where no ``result.json`` tells.
    """
    folder = RunFolder(model if model.is_dir() else model.parent)
    try:
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        return [int(row["pictures"]) for row in result["classes"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _from_run(folder: RunFolder, tell: Callable[[str], object]) -> Classifier:
    if folder.model.exists():
        return Classifier.load(folder.model)
    there = [file for file in (folder.best, folder.last, folder.previous) if file.exists()]
    if not there:
        raise ModelFileError(f"{folder.path}: this run has not saved a model yet")
    found, file, notes = Checkpoint.load_first_good(*there)
    weights = found.settings.get("transfer", {}).get("weights", "none")
    if not found.epoch and not found.step and weights == "none":  # others have a head already
        raise ModelFileError(
            f"{folder.path}: this run has learned nothing yet; wait for its first epoch to end"
        )
    for note in notes:
        tell(note)
    moment = (
        f"epoch {found.epoch}"
        if not found.step
        else f"step {found.step} of epoch {found.epoch + 1}"
    )
    tell(f"{folder.path}: this run has not ended; {file.name} was taken, from {moment}")
    return found.build_classifier(str(file))
