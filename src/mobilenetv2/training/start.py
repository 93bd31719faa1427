"""Before the loop: device, pictures, first weights, and how much of the network learns."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import MachineConfig, Preprocessing, TrainConfig
from mobilenetv2.data.sources import DataSet, load_data
from mobilenetv2.errors import ConfigError, ModelFileError
from mobilenetv2.network import fast_ops
from mobilenetv2.network.build import complete
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.network.pretrained import find_weights, load_weights
from mobilenetv2.network.weights import Weights, to_grey
from mobilenetv2.training.device import Device, choose_device, compile_network, find_device
from mobilenetv2.training.recipes import from_nothing
from mobilenetv2.training.transfer import Tuning, choose_tuning, freeze


@dataclass(frozen=True)
class Start:
    """Everything that a run has before its first step.

    Attributes:
        config: every setting, with what was left to us written in.
        device: where it runs.
        data: the pictures.
        classifier: on the device, with its first weights.
        tuning: how much of it learns.
        notes: what the user should know of it, in lines.
    """

    config: TrainConfig
    device: Device
    data: DataSet
    classifier: Classifier
    tuning: Tuning
    notes: tuple[str, ...]


def start(config: TrainConfig) -> Start:
    """Load the data and make the classifier; its first weights follow from ``config``.

    Raises:
        UserError: the settings, the data or the weights cannot be used.
    """
    find_device(config.machine.device)  # what cannot be had is told before anything is loaded
    weights, notes = _find_weights(config)
    data = load_data(config.data)
    if weights is None:
        return _assemble(from_nothing(config) if notes else config, data, notes)

    if data.preprocessing.colour == "grey":
        weights = to_grey(weights)
    info = weights.info
    prepared = data.preprocessing.model_copy(update={"mean": info.mean, "std": info.std})
    data = replace(data, preprocessing=prepared)
    options = {"width": info.width, "padding": info.padding, "norm_eps": info.norm_eps}
    network = config.network.model_copy(update=options)
    begun = _assemble(config.model_copy(update={"network": network}), data, notes)
    assert isinstance(begun.classifier.network, MobileNetV2)
    report = load_weights(begun.classifier.network, weights)
    return replace(begun, notes=(*notes, str(report), begun.tuning.reason))


def start_again(config: TrainConfig, preprocessing: Preprocessing) -> Start:
    """The same for a run that was begun before; a checkpoint brings the weights afterwards.

    Raises:
        UserError: the data cannot be used any more.
    """
    find_device(config.machine.device)
    return _assemble(config, load_data(config.data, preprocessing), ())


def _choose_device(machine: MachineConfig, tuning: Tuning) -> Device:
    """Compiled operations are for steps of training; a head alone is solved without any."""
    if not tuning.head_only or machine.fast_ops == "off":
        return choose_device(machine)
    device = choose_device(machine.model_copy(update={"fast_ops": "torch"}))
    if device.fast_ops.kind != "torch":
        return device
    reason = "fast operations: PyTorch only, as a head is solved without steps"
    return replace(device, fast_ops=replace(device.fast_ops, reason=reason))


def _assemble(config: TrainConfig, data: DataSet, notes: tuple[str, ...]) -> Start:
    """A fresh classifier on the device, with the operations and the frozen parts it will have."""
    torch.manual_seed(config.seed)
    size = data.preprocessing
    config = config.model_copy(
        update={"network": complete(config.network, size.height, size.width)}
    )
    tuning = choose_tuning(config.transfer, data)
    device = _choose_device(config.machine, tuning)
    if tuning.head_only:  # solved in one go: nothing is scheduled
        schedule = config.schedule.model_copy(update={"warmup_epochs": 0.0})
        config = config.model_copy(update={"epochs": 1, "schedule": schedule})
    classifier = Classifier.create(config.network, size, data.classes)
    classifier.network.to(device.device).to(memory_format=torch.channels_last)
    fast_ops.install(classifier.network, device.fast_ops)
    freeze(classifier.network, tuning)
    if device.compiled:
        compile_network(classifier.network)
    return Start(config, device, data, classifier, tuning, notes)


def _find_weights(config: TrainConfig) -> tuple[Weights | None, tuple[str, ...]]:
    """The weights that were asked for, and notes where "auto" has to do without."""
    wanted = config.transfer.weights
    if wanted == "none":
        return None, ()
    if config.network.network != "mobilenetv2":
        reason = f"there are none for {config.network.network}"
        if wanted != "auto":
            raise ConfigError(f"--weights {wanted}: {reason}")
        return None, (f"no pretrained weights: {reason}",)
    size = config.data.image_size or 224
    try:
        weights = find_weights(
            "imagenet" if wanted == "auto" else wanted,
            Path.home() / ".cache" / "mobilenetv2" / "weights",
            width=config.network.width,
            image_size=(size, size) if isinstance(size, int) else size,
        )
    except ModelFileError as error:
        if wanted != "auto":
            raise
        return None, (
            f"no pretrained weights: {error}",
            "training from scratch, which needs far more pictures. If you have a file of weights, "
            "name it with --weights; --weights none looks for none",
        )
    return weights, ()
