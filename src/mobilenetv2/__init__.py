"""MobileNetV2, from a folder of pictures to a proven classifier.

>>> import mobilenetv2
>>> mobilenetv2.MobileNetV2(num_classes=10).feature_channels
1280
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilenetv2.classifier import Classifier, Prediction
    from mobilenetv2.config import (
        AugmentConfig,
        DataConfig,
        MachineConfig,
        NetworkConfig,
        OptimizerConfig,
        Preprocessing,
        ScheduleConfig,
        TrainConfig,
    )
    from mobilenetv2.data.batches import LabelledPictures
    from mobilenetv2.data.sources import DataSet, load_data
    from mobilenetv2.errors import (
        ConfigError,
        DataError,
        Interrupted,
        Mobilenetv2Error,
        ModelFileError,
        NonFiniteLoss,
        UserError,
        WorkFailed,
    )
    from mobilenetv2.evaluation.evaluate import Evaluation, evaluate
    from mobilenetv2.network.first_version import FirstVersion
    from mobilenetv2.network.mobilenetv2 import MobileNetV2, stride_plan
    from mobilenetv2.runtimes.engine import with_runtime
    from mobilenetv2.training.load import load
    from mobilenetv2.training.recipes import configure
    from mobilenetv2.training.train import resume, train

__version__ = "0.1.0"

# Importing PyTorch takes seconds. A name is fetched from its module when it is first asked for, so
# that `mobilenetv2 --help` and `import mobilenetv2` cost almost nothing.
_HOME = {
    "AugmentConfig": "config",
    "Classifier": "classifier",
    "ConfigError": "errors",
    "DataConfig": "config",
    "DataError": "errors",
    "DataSet": "data.sources",
    "Evaluation": "evaluation.evaluate",
    "FirstVersion": "network.first_version",
    "Interrupted": "errors",
    "LabelledPictures": "data.batches",
    "MachineConfig": "config",
    "MobileNetV2": "network.mobilenetv2",
    "Mobilenetv2Error": "errors",
    "ModelFileError": "errors",
    "NetworkConfig": "config",
    "NonFiniteLoss": "errors",
    "OptimizerConfig": "config",
    "Prediction": "classifier",
    "Preprocessing": "config",
    "ScheduleConfig": "config",
    "TrainConfig": "config",
    "UserError": "errors",
    "WorkFailed": "errors",
    "configure": "training.recipes",
    "evaluate": "evaluation.evaluate",
    "load": "training.load",
    "load_data": "data.sources",
    "resume": "training.train",
    "stride_plan": "network.mobilenetv2",
    "train": "training.train",
    "with_runtime": "runtimes.engine",
}

__all__ = [
    "AugmentConfig",
    "Classifier",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DataSet",
    "Evaluation",
    "FirstVersion",
    "Interrupted",
    "LabelledPictures",
    "MachineConfig",
    "MobileNetV2",
    "Mobilenetv2Error",
    "ModelFileError",
    "NetworkConfig",
    "NonFiniteLoss",
    "OptimizerConfig",
    "Prediction",
    "Preprocessing",
    "ScheduleConfig",
    "TrainConfig",
    "UserError",
    "WorkFailed",
    "configure",
    "evaluate",
    "load",
    "load_data",
    "resume",
    "stride_plan",
    "train",
    "with_runtime",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mobilenetv2' has no attribute {name!r}")
    return getattr(import_module(f"mobilenetv2.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
