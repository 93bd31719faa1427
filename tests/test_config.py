"""Every setting: its range, its words for what is outside, and that nothing else gets in."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mobilenetv2.command_config import EvaluateConfig, InspectConfig, PredictConfig
from mobilenetv2.complaints import suggestion
from mobilenetv2.config import (
    AugmentConfig,
    DataConfig,
    MachineConfig,
    NetworkConfig,
    OptimizerConfig,
    Preprocessing,
    ScheduleConfig,
    Section,
    TrainConfig,
    TransferConfig,
    flag_names,
)
from mobilenetv2.errors import ConfigError
from mobilenetv2.settings import validate

SECTIONS = [
    AugmentConfig,
    DataConfig,
    MachineConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
    TransferConfig,
]
COMMANDS = [EvaluateConfig, InspectConfig, PredictConfig, TrainConfig]


@pytest.mark.parametrize(
    ("section", "name", "inside", "outside"),
    [
        (
            DataConfig,
            "image_size",
            (8, 4096, (8, 4096), (28, 32)),
            (7, 4097, (28, 7), (8,), 0, "x"),
        ),
        (DataConfig, "val_fraction", (1e-6, 0.5), (0, 0.51, -0.1)),
        (DataConfig, "split_seed", (0, 2**40), (-1, 0.5)),
        (DataConfig, "colour", ("auto", "rgb", "grey"), ("gray", "RGB", "", 3)),
        (NetworkConfig, "network", ("mobilenetv2", "first-version"), ("resnet", None)),
        (NetworkConfig, "width", (0.05, 1, 4, None), (0.04, 4.01, 0, -1)),
        (NetworkConfig, "strides", ((1,) * 8, (2,) * 8, None), ((1,) * 7, (1,) * 9, (0,) * 8, 2)),
        (NetworkConfig, "dropout", (0, 0.99), (1, -0.1)),
        (NetworkConfig, "padding", ("symmetric", "keras"), ("same",)),
        (NetworkConfig, "norm_eps", (1e-9, 0.1), (0, 0.2)),
        (NetworkConfig, "norm_momentum", (1e-3, 1), (0, 1.1)),
        (TransferConfig, "tune", ("auto", "head", "all", 1, 18), (0, 19, "tail", -1)),
        (TransferConfig, "layer_decay", (0.1, 1), (0, 1.1)),
        (AugmentConfig, "crop", (0.01, 1), (0, 1.1)),
        (AugmentConfig, "shift", (0, 0.5), (-0.1, 0.6)),
        (AugmentConfig, "rotate", (0, 180), (-1, 181)),
        (AugmentConfig, "zoom", (0, 0.9), (-0.1, 1)),
        (AugmentConfig, "shear", (0, 45), (-1, 46)),
        (AugmentConfig, "flip", (True, False), ("perhaps", 3)),
        (AugmentConfig, "colour_jitter", (0, 1), (-0.1, 1.1)),
        (AugmentConfig, "erase", (0, 1), (-0.1, 1.1)),
        (AugmentConfig, "mixup", (0, 10), (-0.1, 11)),
        (AugmentConfig, "cutmix", (0, 10), (-0.1, 11)),
        (OptimizerConfig, "optimizer", ("sgd", "adam", "adamw", "rmsprop"), ("SGD", "lamb")),
        (OptimizerConfig, "lr", (1e-9, 100, "auto", "1e-3"), (0, -1, 101, "fast", None)),
        (OptimizerConfig, "momentum", (0.0, 0.999), (1, -0.1)),
        (OptimizerConfig, "weight_decay", (0, 1), (-1e-5, 1.1)),
        (OptimizerConfig, "clip_norm", (1e-3, 1e6, None), (0, -1)),
        (ScheduleConfig, "schedule", ("cosine", "constant"), ("linear",)),
        (ScheduleConfig, "warmup_epochs", (0, 0.5, 10), (-0.1,)),
        (ScheduleConfig, "gamma", (1e-3, 1, None), (0, 1.1)),
        (ScheduleConfig, "milestones", ((), (1, 2.5)), ((0,), (-1,), 3)),
        (MachineConfig, "precision", ("auto", "fp32", "bf16"), ("fp16",)),
        (MachineConfig, "fast_ops", ("auto", "cpp", "torch", "off", False), ("on", True)),
        (MachineConfig, "compile", ("auto", "on", "off", True, False), ("yes", 1)),
        (TrainConfig, "epochs", (1, 100_000), (0, -3, 100_001, 1.5, "many")),
        (TrainConfig, "batch_size", (1, 65_536), (0, 65_537)),
        (TrainConfig, "label_smoothing", (0, 0.99), (1, -0.1)),
        (TrainConfig, "ema", (0, 0.9999), (1, -0.1)),
        (TrainConfig, "seed", (0, 2**63 - 1), (-1, 2**63)),
    ],
)
def test_ranges(
    section: type[Section], name: str, inside: tuple[Any, ...], outside: tuple[Any, ...]
) -> None:
    for value in inside:
        section(**{name: value})
    for value in outside:
        with pytest.raises(ConfigError) as error:
            section(**{name: value})
        assert str(error.value).startswith(f"{name}: "), value
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", [*SECTIONS, TrainConfig])
def test_no_number_is_endless(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        if "float" in str(field.annotation):
            for value in (math.nan, math.inf, -math.inf):
                with pytest.raises(ConfigError, match=f"^{name}: "):
                    section(**{name: value})


@pytest.mark.parametrize("section", [*SECTIONS, *COMMANDS, Preprocessing])
def test_sections_take_nothing_unknown_and_stay_as_they_are(section: type[Section]) -> None:
    given = {
        EvaluateConfig: {"model": "x"},
        PredictConfig: {"model": "x", "pictures": ("a.png",)},
        Preprocessing: {
            "colour": "grey", "height": 8, "width": 8, "resize": 8, "mean": (0.5,), "std": (0.5,)
        },
    }.get(section, {})  # fmt: skip
    config = section(**given)
    with pytest.raises(ConfigError, match="unknown setting 'no_such'"):
        section(**given, no_such=1)
    name = next(iter(section.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, name, getattr(config, name))
    assert section(**config.model_dump()) == config


def test_the_largest_photos_have_room_for_their_margin() -> None:
    """Of 4096 px, resized to 4680: in the proportion of 224 and 256."""
    wanted = Preprocessing(
        colour="grey", height=4096, width=4096, resize=4680, mean=(0.5,), std=(0.5,)
    )
    with pytest.raises(ConfigError, match="resize"):
        Preprocessing(**wanted.model_dump() | {"resize": 8193})


@pytest.mark.parametrize("section", SECTIONS)
def test_every_typo_finds_its_setting(section: type[Section]) -> None:
    for name in section.model_fields:
        if len(name) > 3:
            typo = name[:-2] + name[-1]
            if typo not in flag_names(TrainConfig):
                with pytest.raises(ConfigError, match="did you mean"):
                    TrainConfig(**{typo: 1})


def test_a_misplaced_setting_is_sent_home() -> None:
    for name, home in flag_names(TrainConfig).items():
        if home is not None and name not in TrainConfig.model_fields:
            with pytest.raises(ConfigError, match=f"'{name}'; it belongs below '{home}'"):
                TrainConfig(**{name: 1})


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(epochs=0, batch_size=0, optimiser={}, lr=1)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for words in (
        "epochs: ",
        "batch_size: ",
        "unknown setting 'optimiser'",
        "unknown setting 'lr'",
    ):
        assert sum(line.startswith(words) for line in lines) == 1


@pytest.mark.parametrize("name", ["augment", "optimizer", "machine"])
def test_a_section_of_the_wrong_type_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: must be a valid dictionary"):
        TrainConfig(**{name: 3})


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="nothing is left for the schedule"):
        TrainConfig(epochs=3, schedule=ScheduleConfig(warmup_epochs=3))
    TrainConfig(epochs=3, schedule=ScheduleConfig(warmup_epochs=2.9))
    with pytest.raises(ConfigError, match="--no-nesterov"):
        TrainConfig(optimizer=OptimizerConfig(momentum=0))
    TrainConfig(optimizer=OptimizerConfig(momentum=0, nesterov=False))
    TrainConfig(optimizer=OptimizerConfig(momentum=0, optimizer="adam"))
    with pytest.raises(ConfigError, match="name one of them"):
        PredictConfig(model="x", pictures=("a",), csv="a", jsonl="b")


@given(st.text(max_size=30))
def test_suggestions_are_known_words(word: str) -> None:
    words = suggestion(word, ["digits", "mnist"])
    assert words in ("", "; did you mean 'digits'?", "; did you mean 'mnist'?")
    assert suggestion("digits", ["digits"]) == "; did you mean 'digits'?"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": {"lr": "fast"}}, "lr: must be a valid number"),
        ({"data": {"image_size": "big"}}, "image_size: must be a valid integer"),
        ({"transfer": {"tune": 19}}, "tune: must be less than or equal to 18, got 19"),
        ({"transfer": {"tune": "some"}}, "tune: must be 'auto', 'head' or 'all'"),
    ],
)
def test_of_several_types_the_usual_one_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**settings)
    assert str(error.value).startswith(words)


def test_a_few_words_of_yaml_for_endless_lists_are_told_in_a_line() -> None:
    bomb: Any = "lol"
    for _ in range(60):
        bomb = [bomb] * 9
    with pytest.raises(ConfigError) as caught:
        validate({"epochs": bomb}, "bomb.yaml")
    assert len(str(caught.value)) < 300
