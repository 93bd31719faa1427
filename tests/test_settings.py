"""Settings: validation, YAML, precedence, and words for what is wrong."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilenetv2.config import (
    DataConfig,
    OptimizerConfig,
    Preprocessing,
    ScheduleConfig,
    TrainConfig,
    flag_names,
)
from mobilenetv2.errors import ConfigError
from mobilenetv2.settings import merge, parse_settings, read_settings, to_yaml, validate
from mobilenetv2.training.recipes import configure, recipe_settings


def test_a_number_in_yaml_is_a_number_however_it_is_written() -> None:
    for text in ("lr: 1e-3", "lr: 0.001", "optimizer: {lr: 1e-3}", "optimizer:\n  lr: '1e-3'"):
        assert validate(parse_settings(text, "x"), "x").optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr: 1", "unknown setting 'lrr'; did you mean 'lr'"),
        ("optimizer: {lrr: 1}", "unknown setting 'lrr'; did you mean 'lr'"),
        ("optimizer: {epochs: 1}", "unknown setting 'epochs'"),
        ("epochs: 0", "epochs: must be greater than or equal to 1, got 0"),
        ("lr: -1", "lr: must be greater than 0, got -1"),
        ("lr: fast", "lr: "),
        ("lr: .nan", "lr: "),
        ("width: 0", "width: "),
        ("image_size: 4", "image_size: "),
        ("batch-size: 0", "batch_size: "),
        ("strides: [1, 2, 3, 1, 1, 1, 1, 1]", "strides: "),
        ("warmup_epochs: 30\nepochs: 30", "warmup_epochs (30) must be less than epochs (30)"),
        ("momentum: 0", "nesterov needs momentum above 0"),
        ("- 1", "expected lines such as"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(parse_settings(text, "my.yaml"), "my.yaml")
    assert words in str(error.value)
    assert "my.yaml" in str(error.value)
    assert "pydantic" not in str(error.value)


def test_python_gets_the_same_words() -> None:
    with pytest.raises(ConfigError, match="lr: must be greater than 0"):
        OptimizerConfig(lr=-1)
    with pytest.raises(ConfigError, match="it belongs below 'optimizer'"):
        TrainConfig(lr=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="rgb needs 3 means"):
        Preprocessing(colour="rgb", height=8, width=8, resize=8, mean=(0.5,), std=(0.5,))


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().epochs = 3  # type: ignore[misc]


def test_no_setting_is_declared_twice() -> None:
    sections = [field.annotation for field in TrainConfig.model_fields.values()]
    names = [
        name
        for section in sections
        if isinstance(section, type) and hasattr(section, "model_fields")
        for name in section.model_fields
    ]
    assert len(names) == len(set(names))
    assert "lr" in flag_names(TrainConfig)


def test_every_setting_has_help() -> None:
    for field in TrainConfig.model_fields.values():
        section = field.annotation
        if isinstance(section, type) and hasattr(section, "model_fields"):
            for name, inner in section.model_fields.items():
                assert inner.description, name


@given(
    lr=st.floats(1e-6, 100),
    epochs=st.integers(3, 1000),
    milestones=st.lists(st.floats(0.1, 100), max_size=3),
    data=st.text(min_size=1, max_size=20),
)
def test_yaml_round_trip(lr: float, epochs: int, milestones: list[float], data: str) -> None:
    config = TrainConfig(
        data=DataConfig(data=data),
        optimizer=OptimizerConfig(lr=lr),
        schedule=ScheduleConfig(milestones=tuple(milestones)),
        epochs=epochs,
    )
    assert validate(parse_settings(to_yaml(config), "x"), "x") == config


def test_merge_keeps_what_is_not_named() -> None:
    low = {"optimizer": {"lr": 1, "momentum": 0.5}, "epochs": 3}
    assert merge(low, {"optimizer": {"lr": 2}}) == {
        "optimizer": {"lr": 2, "momentum": 0.5},
        "epochs": 3,
    }
    assert low["optimizer"] == {"lr": 1, "momentum": 0.5}


def test_recipes_are_valid_and_overridden() -> None:
    for data in ("digits", "mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100", "nowhere/"):
        assert validate(recipe_settings(data), data)
    assert configure("mnist").optimizer.lr == validate(recipe_settings("mnist"), "").optimizer.lr
    assert configure("mnist", lr=0.33, epochs=77).optimizer.lr == 0.33
    with pytest.raises(ConfigError, match="did you mean"):
        configure("mnist", lrr=1)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_settings(path)
