"""The end of a run: deliver the classifier, measure what was delivered, draw it, write it down."""

from typing import Any

from mobilenetv2.classifier import Classifier
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.data.sources import DataSet
from mobilenetv2.evaluation import curves, plots
from mobilenetv2.evaluation.evaluate import evaluate
from mobilenetv2.evaluation.mistakes import write_mistakes
from mobilenetv2.network.cost import count_madds, count_params
from mobilenetv2.runtimes.engine import with_runtime
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.device import Device
from mobilenetv2.training.frozen_features import FrozenFeatures
from mobilenetv2.training.run_folder import RunFolder


def deliver(folder: RunFolder, summary: dict[str, Any]) -> tuple[Classifier, tuple[str, ...]]:
    """Write ``model.safetensors`` from the kept checkpoint, and read it back.

    What is measured afterwards is the file that people get, not what the loop remembers. Where the
    best checkpoint was damaged meanwhile, the last one takes its place.

    Args:
        folder: holds ``best.pth.tar`` and ``last.pth.tar``.
        summary: of the training, kept inside the file.

    Returns:
        The classifier, and what is wrong with a checkpoint that was not taken.
    """
    found, _, notes = Checkpoint.load_first_good(folder.best, folder.last, folder.previous)
    best = found.build_classifier(str(folder.path))
    size = best.preprocessing
    summary = summary | {
        "best_epoch": found.epoch,
        "network": best.config.network,
        "width": best.config.width,
        "params": count_params(best.network),
        "madds": count_madds(best.network, size.channels, size.height, size.width),
    }
    Classifier(best.network, best.config, size, best.labels, summary).save(folder.model)
    return Classifier.load(folder.model), notes


def measure(
    classifier: Classifier,
    data: DataSet,
    train_sample: LabelledPictures,
    folder: RunFolder,
    device: Device,
    measured_by: str,
    features: FrozenFeatures | None = None,
) -> dict[str, Any]:
    """The figures of ``result.json`` that say what the classifier is worth; draws the pictures.

    The test set is used here and nowhere else. The runtime ``measured_by`` runs the network. Where
    only the head was fitted, ``features`` spare a second look at the pictures.
    """
    look = evaluate if features is None else features.evaluate
    classifier.network.to(device.device)
    classifier = with_runtime(classifier, measured_by)
    train, val = look(classifier, train_sample), look(classifier, data.val)
    test = None if data.test is None else look(classifier, data.test)
    shown, pictures = (val, data.val) if test is None or data.test is None else (test, data.test)
    figures = {
        "curves.png": curves.training(list(folder.read_events())),
        "confusion.png": plots.confusion(shown, classifier.labels),
        "mistakes.png": plots.mistakes(shown, pictures, classifier.labels),
    }
    for name, figure in figures.items():
        plots.save(figure, folder.path / name)
    write_mistakes(folder.path / "mistakes.csv", shown, pictures, classifier.labels)
    return {
        "train_accuracy": train.accuracy,
        "val_accuracy": val.accuracy,
        "val_loss": val.loss,
        "test_accuracy": None if test is None else test.accuracy,
        "test_loss": None if test is None else test.loss,
        "accuracy_interval": list(shown.interval),
        "macro_f1": shown.per_class.macro_f1,
        "classes": shown.summary(classifier.labels)["classes"],
    }
