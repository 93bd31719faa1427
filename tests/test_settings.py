"""Settings: validation, YAML, precedence, and words for what is wrong."""

import contextlib
import io
import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mobilenetv2.cli.arguments import read_train_config
from mobilenetv2.config import (
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    Preprocessing,
    ScheduleConfig,
    TrainConfig,
    TransferConfig,
    flag_names,
)
from mobilenetv2.errors import ConfigError
from mobilenetv2.settings import merge, nest, parse_settings, read_settings, to_yaml, validate
from mobilenetv2.training.recipes import configure, recipe_settings, with_enough_steps


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
        ("optimizer: {1: 2}", "unknown setting '1'"),
        ("optimizer: {null: 2, lr: {1: 2}}", "unknown setting 'None'"),
        ("1: {2: 3}", "unknown setting '1'"),
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
    # PyYAML writes these three, which some call line ends, and reads them as others.
    data=st.text(st.characters(exclude_characters="\x85\u2028\u2029"), min_size=1, max_size=20),
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


def test_pretrained_weights_bring_their_own_pace() -> None:
    plain, gentle = configure("cifar10"), configure("cifar10", weights="imagenet")
    assert gentle.optimizer.lr < plain.optimizer.lr / 10
    assert gentle.augment.mixup > 0
    assert gentle.augment.model_copy(update={"mixup": 0.0, "cutmix": 0.0}) == plain.augment
    assert configure("cifar10", transfer={"weights": "imagenet"}).optimizer == gentle.optimizer
    section = TransferConfig(weights="x.pth")
    assert configure("cifar10", transfer=section).optimizer == gentle.optimizer
    assert configure("cifar10", weights="none").optimizer == plain.optimizer
    with pytest.raises(ConfigError):
        configure("cifar10", transfer=3)


def test_photos_start_from_weights_where_they_can(picture_folder: Callable[..., Path]) -> None:
    photos = str(picture_folder(size=(120, 100), count=3))
    config = configure(photos)
    assert config.transfer.weights == "auto"
    assert config.optimizer == configure(photos, weights="x.pth").optimizer
    plain = configure(photos, weights="none")
    assert config.optimizer != plain.optimizer
    assert config.without_weights == plain
    assert config.or_without_weights(plain).without_weights == plain
    # Asked for is asked for, also where it is what the recipe would have said.
    for asked in (
        {"lr": 0.07, "epochs": 6, "flip": False, "seed": 3, "tune": "all"},
        {"lr": config.optimizer.lr, "epochs": config.epochs, "ema": config.ema},
        {"optimizer": "adamw", "warmup_epochs": config.schedule.warmup_epochs},
    ):
        without = configure(photos, **asked).without_weights
        assert without == configure(photos, weights="none", **asked)
        for name, value in nest(asked).items():
            assert without.model_dump()[name] == value or value.items() <= (
                without.model_dump()[name].items()
            )
    assert config.model_copy(update={"seed": 1}).without_weights.seed == 0
    # Without weights there is nothing that a part of the network could build on.
    assert configure(photos, tune=2).without_weights.transfer.tune == "auto"
    assert configure("minst").transfer.weights == "none", "no download for a misspelt name"
    small = configure(str(picture_folder(name="small")))
    assert small.transfer.weights == "none"


@pytest.mark.parametrize(
    ("mode", "dtype", "recipe"),
    [
        ("L", "uint8", "small-grey"),
        ("I;16", "uint16", "small-grey"),
        ("RGB", "uint8", "small-colour"),
    ],
)
def test_small_grey_pictures_of_any_depth_are_grey(
    tmp_path: Path, mode: str, dtype: str, recipe: str
) -> None:
    shape = (28, 28, 3) if mode == "RGB" else (28, 28)
    picture = Image.fromarray(np.full(shape, 99, dtype))
    assert picture.mode == mode
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name)
    expected = parse_settings(
        (resources.files("mobilenetv2") / "recipes" / f"{recipe}.yaml").read_text(), recipe
    )
    assert recipe_settings(str(tmp_path)) == with_enough_steps(expected, 3)


@pytest.mark.parametrize(
    ("count", "batch_size", "rate", "epochs"),
    [
        (20, 32, 0.05, 120), (200, 32, 0.05, 112), (350, 32, 0.05, 64), (1999, 32, 0.05, 30),
        (2559, 32, 0.05, 30), (2560, 64, 0.071, 30), (5119, 64, 0.071, 30), (5120, 128, 0.2, 30),
        (60_000, 128, 0.2, 30),
    ],
)  # fmt: skip
def test_few_pictures_get_more_steps(count: int, batch_size: int, rate: float, epochs: int) -> None:
    recipe = {"epochs": 30, "batch_size": 128, "optimizer": {"lr": 0.2, "momentum": 0.8}}
    optimizer = {"lr": rate, "momentum": 0.8}
    chosen = {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer}
    assert with_enough_steps(recipe, count) == chosen
    assert with_enough_steps(recipe, count, batch_size) == chosen, "asked for what it takes anyway"
    if count < 5120:
        for asked, lr in ((8, 0.025), (128, 0.1), (512, 0.1)):
            other = with_enough_steps(recipe, count, asked)
            assert (other["batch_size"], other["optimizer"]["lr"]) == (asked, lr)
            assert other["epochs"] == max(30, min(120, math.ceil(700 * asked / count)))


@pytest.mark.parametrize(
    ("parts", "epochs"),
    [
        ({"train": 300, "val": 50}, 75),  # 700 steps of 32
        ({"train": 300, "test": 3000}, 83),  # a tenth of train/ is held out
        ({"": 300}, 83),
    ],
)
def test_few_pictures_of_a_folder_are_those_to_train_on(
    tmp_path: Path, parts: dict[str, int], epochs: int
) -> None:
    picture = io.BytesIO()
    Image.new("L", (28, 28)).save(picture, "PNG")
    for part, pictures in parts.items():
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
        for number in range(pictures):
            where = tmp_path / part / "ab"[number % 2] / f"{number}.png"
            where.write_bytes(picture.getvalue())
    data = str(tmp_path)
    config = configure(data)
    assert (config.batch_size, config.optimizer.lr, config.epochs) == (32, 0.05, epochs)
    assert configure(data, epochs=3).epochs == 3
    asked = configure(data, batch_size=128)
    assert (asked.batch_size, asked.optimizer.lr, asked.epochs) == (128, 0.1, 120)
    assert read_train_config("train", [data, "--batch-size", "128"]) == asked
    assert configure(data, weights="x.pth").epochs == 16, "that of pretrained weights"


def test_what_cannot_be_read_does_not_choose_the_recipe(tmp_path: Path) -> None:
    """A handful of photos behind many broken files are photos; nothing readable is not grey."""
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
    for number in range(300):
        (tmp_path / "ab"[number % 2] / f"{number:03}.jpg").write_bytes(b"\xff\xd8 broken")
    assert not recipe_settings(str(tmp_path))["augment"].get("rotate"), "not that of grey letters"
    Image.new("RGB", (640, 480)).save(tmp_path / "b" / "137.jpg")
    assert configure(str(tmp_path)).transfer.weights == "auto"


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_settings(path)


def test_a_whole_section_may_be_given() -> None:
    section = OptimizerConfig(lr=0.33, momentum=0.5)
    assert configure("mnist", optimizer=section).optimizer == section
    assert configure("mnist", optimizer={"lr": 0.33}).optimizer.lr == 0.33
    assert configure("mnist", network="first-version").network.network == "first-version"
    assert configure("mnist", network=NetworkConfig(width=0.35)).network.width == 0.35
    assert validate(nest({"data": "kmnist"}), "x").data.data == "kmnist"


@pytest.mark.parametrize(
    "text",
    [
        "a: 2024-13-45",
        "a: !!int foo",
        "a: !!float x",
        "a: !!timestamp foo",
        "a: " + "1" * 5000,
        "[" * 500,
        "a: !!python/object/apply:os.system ['true']",
        "? [1]\n: 2",
        "\t",
        "a: *nowhere",
        "\x00",
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml: not valid YAML"):
        parse_settings(text, "my.yaml")


@given(
    st.text(alphabet=st.sampled_from("abelr_-: \n0123.[]{}&*!|>'\"#?,~"), max_size=40) | st.text()
)
def test_any_text_is_settings_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        settings = parse_settings(text, "x")
        assert isinstance(settings, dict)
        assert isinstance(validate(settings, "x"), TrainConfig)


def test_dashes_and_underscores_are_the_same() -> None:
    for key in ("batch-size", "batch_size"):
        assert validate(parse_settings(f"{key}: 7", "x"), "x").batch_size == 7
    below = validate(parse_settings("optimizer: {weight-decay: 0.5}", "x"), "x")
    assert below.optimizer.weight_decay == 0.5


def test_a_file_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("data: Käfer/虎\nlr: 0.5  # ½\n".encode())
    assert validate(read_settings(path), "x").data.data == "Käfer/虎"
    path.write_bytes(b"")
    assert read_settings(path) == {}


def test_everything_survives_yaml() -> None:
    config = TrainConfig(
        data=DataConfig(
            data="a: b # c", data_dir=Path("/tmp/ä"), image_size=(28, 32), colour="grey"
        ),
        network=NetworkConfig(width=0.35, strides=(1, 1, 2, 1, 1, 1, 1, 1), padding="keras"),
        optimizer=OptimizerConfig(lr="auto", clip_norm=1e-3),
        schedule=ScheduleConfig(schedule="multistep", gamma=0.5, milestones=(1, 2.5)),
        out=Path("runs/x"),
        seed=2**63 - 1,
        quiet=True,
    )
    assert validate(parse_settings(to_yaml(config), "x"), "x") == config
