"""Before the loop: device, pictures, first weights, and how much of the network learns."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mobilenetv2.cache import cache_folder
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import MachineConfig, NetworkConfig, Preprocessing, TrainConfig
from mobilenetv2.data.augment import train_size
from mobilenetv2.data.sources import DataSet, load_data
from mobilenetv2.distributed import ALONE, Processes
from mobilenetv2.errors import ConfigError, UserError
from mobilenetv2.network import fast_ops
from mobilenetv2.network.build import complete
from mobilenetv2.network.downloads import Progress
from mobilenetv2.network.mobilenetv2 import MobileNetV2
from mobilenetv2.network.pretrained import find_weights, load_weights
from mobilenetv2.network.weights import Convention, Weights, WeightsInfo, for_channels
from mobilenetv2.training.device import Device, choose_device, compile_network, find_device
from mobilenetv2.training.transfer import Tuning, choose_tuning, freeze

Tell = Callable[[str], None]
"""Takes a line for the user, where there is something to wait for."""

AUTO = "imagenet"
"""What ``--weights auto`` stands for, where it can be had."""


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


def start(config: TrainConfig, processes: Processes = ALONE, tell: Tell = lambda _: None) -> Start:
    """Load the data and make the classifier; its first weights follow from ``config``.

    Raises:
        UserError: the settings, the data or the weights cannot be used.
    """
    find_device(config.machine.device)  # what cannot be had is told before anything is loaded
    _check_tune(config)
    config, weights, notes = _find_weights(config, processes, tell)
    data = load_data(config.data, tell=tell)
    if weights is None:
        return _assemble(config, data, notes, tell)

    _check_options(config.network, weights.info)
    weights = for_channels(weights, data.preprocessing.channels)
    info = weights.info
    prepared = data.preprocessing.model_copy(update={"mean": info.mean, "std": info.std})
    data = replace(data, preprocessing=prepared)
    options = {
        "width": info.width,
        "strides": info.strides or config.network.strides,
        "padding": info.padding,
        "norm_eps": info.norm_eps,
    }
    if info.strides not in (None, config.network.strides) and config.network.strides:
        strides = " ".join(map(str, info.strides or ()))
        notes += (f"strides {strides}, with which {info.origin} was trained",)
    network = config.network.model_copy(update=options)
    begun = _assemble(config.model_copy(update={"network": network}), data, notes, tell)
    assert isinstance(begun.classifier.network, MobileNetV2)
    report = load_weights(begun.classifier.network, weights)
    return replace(begun, notes=(*notes, str(report), begun.tuning.reason))


def _check_tune(config: TrainConfig) -> None:
    tune = config.transfer.tune
    if config.transfer.weights == "none" and tune not in ("auto", "all"):
        raise ConfigError(
            f"--tune {tune}: without pretrained weights everything has to learn; add --weights "
            "imagenet (or a file), or leave --tune out"
        )


def start_again(
    config: TrainConfig, preprocessing: Preprocessing, tell: Tell = lambda _: None
) -> Start:
    """The same for a run that was begun before; a checkpoint brings the weights afterwards.

    Raises:
        UserError: the data cannot be used any more.
    """
    find_device(config.machine.device)
    return _assemble(config, load_data(config.data, preprocessing, tell), (), tell)


def _choose_device(machine: MachineConfig, tuning: Tuning, tell: Tell) -> Device:
    """Compiled operations are for steps of training; a head alone is solved without any."""
    if not tuning.head_only or machine.fast_ops == "off":
        return choose_device(machine, tell)
    device = choose_device(machine.model_copy(update={"fast_ops": "torch"}))
    if device.fast_ops.kind != "torch":
        return device
    reason = "fast operations: PyTorch only, as a head is solved without steps"
    return replace(device, fast_ops=replace(device.fast_ops, reason=reason))


def _assemble(config: TrainConfig, data: DataSet, notes: tuple[str, ...], tell: Tell) -> Start:
    """A fresh classifier on the device, with the operations and the frozen parts it will have."""
    torch.manual_seed(config.seed)
    size = data.preprocessing
    config = config.model_copy(
        update={"network": complete(config.network, size.height, size.width)}
    )
    tuning = choose_tuning(config.transfer, data)
    _check_maps(config, size, tuning)
    device = _choose_device(config.machine, tuning, tell)
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


def _check_maps(config: TrainConfig, size: Preprocessing, tuning: Tuning) -> None:
    """Training sees enough pixels, and batch norm more than one value of each channel."""
    height, width = train_size(config.augment, (size.height, size.width))
    if config.batch_size > 1 or tuning.pretrained or config.network.strides is None:
        return
    halvings = config.network.strides.count(2)
    if max(height, width) <= 2**halvings:
        raise ConfigError(
            f"--batch-size 1: the network's last map is 1×1, as {height}×{width} pixels are halved "
            f"{halvings} times, and batch norm cannot learn from a single value; take a larger "
            "batch, larger pictures or fewer --strides of 2"
        )


def _find_weights(
    config: TrainConfig, processes: Processes, tell: Tell
) -> tuple[TrainConfig, Weights | None, tuple[str, ...]]:
    """The weights that were asked for; for "auto", what stands for it, and notes on why.

    Several processes must start from the same: where the first one finds none, nobody has any.
    """
    wanted = config.transfer.weights
    if wanted == "none":
        return config, None, ()
    if wanted != "auto":
        return config, _weights(config, wanted, tell), ()
    weights, error = None, None
    try:
        weights = _weights(config, AUTO, tell)
    except UserError as reason:
        error = reason
    if not processes.from_first(weights is not None):
        notes: tuple[str, ...] = (
            f"no pretrained weights: {error or 'the first process found none'}",
            "training from scratch, which needs far more pictures. If you have a file of weights, "
            "name it with --weights",
        )
        if config.transfer.tune not in ("auto", "all"):
            notes += (f"--tune {config.transfer.tune} is left out: without them everything learns",)
        return config.without_weights, None, notes
    if error is not None:
        raise error
    return config.with_weights(AUTO), weights, ()


def _weights(config: TrainConfig, wanted: str, tell: Tell) -> Weights:
    if config.network.network != "mobilenetv2":
        raise ConfigError(f"--weights {wanted}: there are none for {config.network.network}")
    size = config.data.image_size or 224

    def find(convention: Convention | None) -> Weights:
        return find_weights(
            wanted,
            cache_folder() / "weights",
            width=config.network.width,
            image_size=(size, size) if isinstance(size, int) else size,
            in_channels=None,
            convention=convention,
            progress=_once(tell, f"--weights {wanted}: downloading them, once"),
        )

    weights = find(None)
    # A bare file does not say who trained it, but the user did.
    says_keras = weights.info.guessed and config.network.padding == "keras"
    return find("keras") if says_keras else weights


def _once(tell: Tell, what: str) -> Progress:
    """Tells when a download begins, and how long it may take."""
    begun = False

    def progress(done: int, total: int | None) -> None:
        nonlocal begun
        if not begun:
            tell(f"{what} ({total / 1e6:.0f} MB)" if total else what)
        begun = True

    return progress


def _check_options(asked: NetworkConfig, needed: WeightsInfo) -> None:
    """What was asked for besides the weights does not contradict them."""
    for name in ("padding", "norm_eps"):
        value, right = getattr(asked, name), getattr(needed, name)
        if value not in (right, NetworkConfig.model_fields[name].default):
            raise ConfigError(
                f"--{name.replace('_', '-')} {value}: {needed.origin} was trained with {right}; "
                "leave it out, or take other weights"
            )
