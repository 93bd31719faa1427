"""Where first weights come from, alone, beside others, and after a restart."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import TrainConfig
from mobilenetv2.distributed import Processes, Value
from mobilenetv2.errors import ConfigError, DataError, ModelFileError, WorkFailed
from mobilenetv2.network.mobilenetv2 import PAPER_STRIDES, MobileNetV2
from mobilenetv2.network.pretrained import find_weights
from mobilenetv2.network.weights import Weights
from mobilenetv2.training import start as module
from mobilenetv2.training.checkpoints import Checkpoint
from mobilenetv2.training.find_lr import RangeTest
from mobilenetv2.training.loop import Training
from mobilenetv2.training.start import start
from mobilenetv2.training.train import run_range_test


@dataclass(frozen=True)
class Second(Processes):
    """The second of two processes, as if the first one had said ``first``."""

    first: Any = None

    def from_first(self, value: Value) -> Value:
        said: Value = self.first
        return said


@pytest.fixture
def photos(picture_folder: Callable[..., Path]) -> Callable[..., TrainConfig]:
    """A function that gives settings for a quick run on few photos."""
    folder = str(picture_folder(size=(100, 120), count=4))

    def give(**changes: Any) -> TrainConfig:
        options = {"width": 0.05, "image_size": 32, "epochs": 2, "fast_ops": "off", "tune": "all"}
        return mobilenetv2.configure(folder, **{**options, **changes})

    return give


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bool], None]:
    """A function that says whether weights can be had; at first they can."""
    torch.manual_seed(0)
    trunk = tmp_path / "trunk.pth"
    torch.save(MobileNetV2(num_classes=1000, width=0.05).state_dict(), trunk)

    def switch(on: bool) -> None:
        def find(name: str, cache: Path, **options: Any) -> Weights:
            if not on:
                raise ModelFileError("offline")
            assert name == "imagenet"
            return find_weights(trunk, cache, **options)

        monkeypatch.setattr(module, "find_weights", find)

    switch(True)
    return switch


def test_who_must_wait_is_told(
    photos: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder that every picture is looked at, before that happens."""
    told: list[str] = []

    def examine(*_: Any, **__: Any) -> Any:
        raise DataError(f"told before: {told}")

    monkeypatch.setattr("mobilenetv2.data.known_folders.examine", examine)
    config = photos(weights="none")
    with pytest.raises(DataError, match="examining the pictures in"):
        start(config, tell=told.append)
    told.clear()
    with pytest.raises(DataError, match="neither a folder"):
        start(mobilenetv2.configure("no-such-folder", weights="none"), tell=told.append)
    start(mobilenetv2.configure("digits"), tell=told.append)
    assert not [line for line in told if "examining" in line]


@pytest.mark.usefixtures("online")
def test_what_was_found_is_written_down_by_its_name(photos: Callable[..., TrainConfig]) -> None:
    begun = start(photos())
    assert begun.config.transfer.weights == "imagenet"
    assert begun.tuning.pretrained


def test_all_processes_do_what_the_first_one_can(
    photos: Callable[..., TrainConfig], online: Callable[[bool], None]
) -> None:
    alone = start(photos(weights="none")).config
    assert start(photos(), Second(1, 2, first=False)).config == alone
    assert start(photos(), Second(1, 2, first=True)).tuning.pretrained
    online(False)
    with pytest.raises(ModelFileError, match="offline"):
        start(photos(), Second(1, 2, first=True))


class PowerCut(BaseException):
    """Nothing in the product catches it."""


def cut_power(*_: Any) -> None:
    raise PowerCut


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("found", [True, False])
def test_a_restart_does_not_search_for_weights_anew(
    photos: Callable[..., TrainConfig],
    online: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    found: bool,
) -> None:
    run = tmp_path / "run"
    config = photos(out=run)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        online(found)
        original = Training._validate_epoch

        def cut(self: Training, *arguments: Any) -> None:
            original(self, *arguments)
            raise PowerCut

        patch.setattr(Training, "_validate_epoch", cut)
        mobilenetv2.train(config)
    assert Checkpoint.load(run / "last.pth.tar").epoch == 1
    online(True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    result = mobilenetv2.train(config)
    assert result["weights"] == ("imagenet" if found else "none")
    assert result["epochs"] == 2


@pytest.mark.usefixtures("online")
def test_no_rate_is_searched_for_a_head(photos: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="solved without a learning rate"):
        run_range_test(photos(tune="head"))


@pytest.mark.usefixtures("undrawn")
def test_the_rate_is_searched_from_the_solved_head(
    photos: Callable[..., TrainConfig],
    online: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """And with the loss that training will have."""
    seen: list[tuple[Tensor, Tensor | None]] = []

    def note(classifier: Classifier, *others: Any) -> RangeTest:
        assert isinstance(classifier.network, MobileNetV2)
        weight = others[-2]  # the last is how long it may take
        seen.append((classifier.network.classifier[1].weight.clone(), weight))
        return RangeTest([], [], [], 1e-4, "because")

    monkeypatch.setattr("mobilenetv2.training.find_lr.find_lr", note)
    config = photos(lr="auto", balance="loss", out=tmp_path / "run", epochs=1)
    run_range_test(config)
    mobilenetv2.train(config)
    (searched, weight), (trained, same_weight) = seen
    fresh = start(config).classifier.network.classifier[1].weight
    assert not torch.equal(searched, fresh)
    assert torch.equal(searched, trained)
    assert weight is not None
    assert same_weight is not None
    assert torch.equal(weight, same_weight)


def test_a_failed_search_for_a_rate_overwrites_nothing(
    quick: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> RangeTest:
        raise WorkFailed("the loss did not fall")

    config = quick(epochs=1)
    result = mobilenetv2.train(config)
    assert config.out is not None
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(WorkFailed, match="did not fall"):
        patch.setattr("mobilenetv2.training.loop.find_lr_of", fail)
        mobilenetv2.train(quick(lr="auto", overwrite=True))
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before
    with monkeypatch.context() as patch, pytest.raises(WorkFailed, match="did not fall"):
        patch.setattr("mobilenetv2.training.loop.save_archive", fail)  # the disk is full, say
        mobilenetv2.train(quick(overwrite=True))
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before
    # A restart by torchrun does not take the old run for the one that had not begun.
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Training, "_peak_lr", cut_power)
        mobilenetv2.train(quick(epochs=1, overwrite=True))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert mobilenetv2.train(quick(epochs=1, overwrite=True))["seconds"] != result["seconds"]
    assert not (config.out / ".replaced").exists()


@pytest.mark.parametrize(
    "suffix", ["model.safetensors", pytest.param("best.pth.tar", marks=pytest.mark.slow)]
)
def test_a_grey_classifier_or_its_checkpoint_starts_a_grey_run(
    quick: Callable[..., TrainConfig], suffix: str
) -> None:
    config = quick(epochs=1, ema=0.5)
    mobilenetv2.train(config)
    assert config.out is not None
    begun = start(quick("second", weights=str(config.out / suffix), tune="all"))
    first = mobilenetv2.load(config.out)
    assert begun.data.preprocessing.mean == first.preprocessing.mean
    for name, tensor in first.network.named_parameters():
        assert torch.equal(tensor, begun.classifier.network.state_dict()[name]), name
    with pytest.raises(ModelFileError, match="of 1 channels, not of 3; add --colour grey"):
        start(quick("third", weights=str(config.out / suffix), colour="rgb", tune="all"))


def test_ones_own_classifier_brings_the_strides_that_it_was_trained_with(
    quick: Callable[..., TrainConfig],
) -> None:
    """Its weights are of use only in such a network, whatever a recipe or a flag says."""
    own = (2, 1, 2, 2, 2, 1, 1, 1)
    config = quick(epochs=1, strides=own)
    mobilenetv2.train(config)
    weights = str(config.out)
    begun = start(quick("second", weights=f"{weights}/model.safetensors", tune="all"))
    assert begun.config.network.strides == own
    assert begun.classifier.config.strides == own
    assert "was trained" not in " ".join(begun.notes)
    other = {"weights": f"{weights}/model.safetensors", "tune": "all", "strides": PAPER_STRIDES}
    begun = start(quick("third", **other))
    assert begun.classifier.config.strides == own
    assert "strides 2 1 2 2 2 1 1 1, with which model.safetensors was trained" in begun.notes


def test_who_waits_for_a_download_is_told_once(
    photos: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trunk = tmp_path / "trunk.pth"
    torch.save(MobileNetV2(num_classes=1000, width=0.05).state_dict(), trunk)

    def find(name: str, cache: Path, **options: Any) -> Weights:
        for done in (1_000_000, 2_000_000, 14_000_000):
            options["progress"](done, 14_000_000)
        return find_weights(trunk, cache, **options)

    monkeypatch.setattr(module, "find_weights", find)
    told: list[str] = []
    start(photos(weights="imagenet"), tell=told.append)
    assert [line for line in told if "downloading" in line] == [
        "--weights imagenet: downloading them, once (14 MB)"
    ]
    told.clear()
    monkeypatch.undo()
    start(photos(weights=str(trunk)), tell=told.append)
    assert not [line for line in told if "downloading" in line]


def test_padding_that_was_asked_for_says_who_trained_a_file(
    photos: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    trunk = tmp_path / "trunk.pth"
    torch.save(MobileNetV2(num_classes=1000, width=0.05).state_dict(), trunk)
    guessed = start(photos(weights=str(trunk)))
    assert guessed.config.network.padding == "symmetric"
    classifier = Classifier.create(guessed.config.network, guessed.data.preprocessing, ("a", "b"))
    classifier.save(tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"--padding keras: model\.saf.* was trained with sy"):
        start(photos(weights=str(tmp_path / "model.safetensors"), padding="keras"))
    said = start(photos(weights=str(trunk), padding="keras", norm_eps=1e-3))
    assert (said.config.network.padding, said.config.network.norm_eps) == ("keras", 1e-3)
    assert said.data.preprocessing.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match=r"--norm-eps 0.002: trunk\.pth was trained with 1e-05"):
        start(photos(weights=str(trunk), norm_eps=2e-3))


@pytest.mark.parametrize("tune", ["head", 3])
def test_nothing_is_tuned_without_weights(quick: Callable[..., TrainConfig], tune: Any) -> None:
    with pytest.raises(ConfigError, match=f"--tune {tune}: without pretrained weights"):
        start(quick(tune=tune))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image_size": 32, "batch_size": 1}, "--batch-size 1: the network's last map is 1×1"),
        (
            {"image_size": 64, "train_size": 32, "batch_size": 1},
            "32×32 pixels are halved 5 times",
        ),
        (
            {"image_size": 64, "train_size": 31},
            "--train-size: 31×31 is less than half of the 64×64",
        ),
        ({"image_size": (64, 96), "train_size": (64, 47)}, "64×47 is less than half"),
    ],
)
def test_what_training_cannot_see_is_refused(settings: dict[str, Any], words: str) -> None:
    config = mobilenetv2.configure("digits", strides=PAPER_STRIDES, width=0.05, **settings)
    with pytest.raises(ConfigError, match=words):
        start(config)


def test_one_picture_is_enough_where_the_last_map_has_more_pixels(tmp_path: Path) -> None:
    small = {"width": 0.05, "fast_ops": "off", "batch_size": 1, "out": tmp_path}
    config = mobilenetv2.configure("digits", image_size=33, strides=PAPER_STRIDES, **small)
    begun = start(config)
    begun.classifier.network.train()
    begun.classifier.logits(begun.data.train.pictures[:1])
