"""A run folder in a second, and what is exported from it."""

import shutil
from pathlib import Path

import pytest
import torch

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import DataConfig, NetworkConfig, Preprocessing, TrainConfig
from mobilenetv2.settings import to_yaml


@pytest.fixture(scope="session")
def digits_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits with random weights and lived-in norms: a file in no run folder."""
    torch.manual_seed(0)
    wanted = Preprocessing(colour="grey", height=8, width=8, resize=8, mean=(0.3,), std=(0.37,))
    labels = tuple(map(str, range(10)))
    classifier = Classifier.create(
        NetworkConfig(width=0.1, strides=(2, 1, 1, 1, 1, 1, 1, 1)), wanted, labels
    )
    for module in classifier.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(classifier.network.classifier[1].weight, 0, 1)
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    classifier.save(path)
    return path


@pytest.fixture
def run_without_data(digits_model: Path, tmp_path: Path) -> Path:
    """The same classifier in the folder of a run whose pictures are not on this machine."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(digits_model, run / "model.safetensors")
    settings = TrainConfig(data=DataConfig(data=str(tmp_path / "gone")))
    (run / "config.yaml").write_text(to_yaml(settings))
    return run


@pytest.fixture
def photos_model(tmp_path: Path) -> Path:
    """A classifier of colour photos that resizes and crops, padded like Keras."""
    torch.manual_seed(1)
    wanted = Preprocessing(
        colour="rgb", height=48, width=40, resize=50, mean=(0.5, 0.4, 0.3), std=(0.3, 0.25, 0.2)
    )
    classifier = Classifier.create(
        NetworkConfig(width=0.1, padding="keras"), wanted, ("dark", "light")
    )
    torch.nn.init.normal_(classifier.network.classifier[1].weight, 0, 1)
    path = tmp_path / "photos.safetensors"
    classifier.save(path)
    return path
