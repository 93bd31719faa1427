"""Published weights: against Keras' and torchvision's own answers, and against broken files."""

import copy
import functools
import hashlib
import json
import os
import pickle
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2

from mobilenetv2.errors import ModelFileError, UserError
from mobilenetv2.network import weights_files
from mobilenetv2.network.downloads import fetch
from mobilenetv2.network.mobilenetv2 import PAPER_STRIDES, MobileNetV2
from mobilenetv2.network.pretrained import find_weights, load_weights
from mobilenetv2.network.weights import Weights, WeightsInfo

KERAS_FILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_224_no_top.h5"
TRUNK_FILE = "mobilenetv2_0.35_224_trunk.safetensors"


@pytest.fixture
def shared_weights() -> Path:
    folder = os.environ.get("MOBILENETV2_TEST_DATA")
    if not folder:
        pytest.skip("MOBILENETV2_TEST_DATA names no folder with real weights")
    return Path(folder) / "weights"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So small are these pictures that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def blocky_pictures(count: int, size: int, channels: int = 3, seed: int = 1) -> Tensor:
    """Coarse random patches: noise of single pixels would be one grey after the average pool."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, (size, size))


def with_statistics(network: Any, in_channels: int = 3) -> Any:
    """Batch norms that do something: fresh ones would forgive a mix-up of their four tensors.

    The running statistics are measured, so that the pictures' differences live to the last layer.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
        norm.momentum = 1.0
    answers(network.train(), blocky_pictures(4, 64, in_channels))
    return network.eval()


@functools.cache
def _keras_network(width: float, classes: int, in_channels: int) -> MobileNetV2:
    network = MobileNetV2(classes, in_channels, width, padding="keras", norm_eps=1e-3)
    return with_statistics(network, in_channels)


def keras_network(width: float = 0.35, classes: int = 5, in_channels: int = 3) -> MobileNetV2:
    return copy.deepcopy(_keras_network(width, classes, in_channels))


def built_for(info: WeightsInfo, classes: int = 2) -> MobileNetV2:
    return MobileNetV2(
        classes, info.in_channels, info.width, padding=info.padding, norm_eps=info.norm_eps
    ).eval()


def loaded(weights: Weights, classes: int = 2) -> MobileNetV2:
    network = built_for(weights.info, classes)
    load_weights(network, weights)
    return network


def answers(network: nn.Module, pictures: Tensor) -> Tensor:
    """Logits, which must differ between pictures: equal ones would prove nothing."""
    with torch.no_grad():
        logits: Tensor = network(pictures)
    assert logits.std(0).max() > 0.01
    return logits


def write_keras_file(path: Path, network: MobileNetV2, top: bool, old_names: bool = False) -> None:
    """The published layout, written by Keras' layer names."""
    layers: list[tuple[str, nn.Module]] = []
    blocks = list(network.features)
    layers += [("Conv1", blocks[0][0]), ("bn_Conv1", blocks[0][1])]
    for index, block in enumerate(blocks[1:-1]):
        prefix = f"block_{index}" if index else "expanded_conv"
        *activated, project, project_norm = block.conv
        for part, name in zip(reversed(activated), ("depthwise", "expand"), strict=False):
            place = len(layers) if name == "depthwise" else len(layers) - 2
            layers[place:place] = [
                (f"{prefix}_{name}", part[0]),
                (f"{prefix}_{name}_BN", part[1]),
            ]
        layers += [(f"{prefix}_project", project), (f"{prefix}_project_BN", project_norm)]
    layers += [("Conv_1", blocks[-1][0]), ("Conv_1_bn", blocks[-1][1])]
    if top:
        layers.append(("predictions", network.classifier[1]))

    with h5py.File(path, "w") as file:
        end = ":0" if old_names else ""
        for name, module in layers:
            group = file.create_group(name)
            arrays: dict[str, Tensor]
            if isinstance(module, nn.BatchNorm2d):
                arrays = {
                    "gamma": module.weight,
                    "beta": module.bias,
                    "moving_mean": module.running_mean,
                    "moving_variance": module.running_var,
                }
            elif isinstance(module, nn.Linear):
                arrays = {"kernel": module.weight.t(), "bias": module.bias}
            elif module.groups > 1:
                kernel = "depthwise_kernel" if old_names else "kernel"
                arrays = {kernel: module.weight.permute(2, 3, 0, 1)}
            else:
                arrays = {"kernel": module.weight.permute(2, 3, 1, 0)}
            group.attrs["weight_names"] = [f"{name}/{key}{end}".encode() for key in arrays]
            for key, tensor in arrays.items():
                group[f"{name}/{key}{end}"] = tensor.detach().numpy()
        empty = file.create_group("input_1")
        empty.attrs["weight_names"] = np.array([], dtype="S1")
        file.attrs["layer_names"] = [b"input_1", *(name.encode() for name, _ in layers)]


# The right numbers


@pytest.mark.parametrize("file", [KERAS_FILE, TRUNK_FILE])
def test_features_equal_those_of_keras(shared_weights: Path, cache: Path, file: str) -> None:
    weights = find_weights(shared_weights / file, cache, width=0.35)
    reference = np.load(shared_weights / "keras_reference_0.35_224.npz")
    pictures = torch.from_numpy(reference["images"]).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = loaded(weights).pooled_features(pictures).numpy()
    np.testing.assert_allclose(features, reference["features"], atol=1e-4, rtol=0)
    assert weights.info.padding == "keras"
    assert weights.info.norm_eps == 1e-3
    assert weights.info.mean == weights.info.std == (0.5, 0.5, 0.5)
    assert weights.info.num_classes is None


@pytest.mark.parametrize(
    ("width", "old_names", "top"), [(0.35, True, True), (0.35, False, False), (1.4, False, True)]
)
def test_keras_file_with_and_without_head(
    tmp_path: Path, cache: Path, width: float, old_names: bool, top: bool
) -> None:
    original = keras_network(width, classes=4)
    write_keras_file(tmp_path / "a.h5", original, top, old_names)
    weights = find_weights(tmp_path / "a.h5", cache)
    assert weights.info.width == width
    assert weights.info.num_classes == (4 if top else None)
    network = loaded(weights, classes=4)
    pictures = blocky_pictures(2, 64, seed=2)
    if top:
        torch.testing.assert_close(answers(network, pictures), answers(original, pictures))
    else:
        torch.testing.assert_close(
            network.features(pictures), original.features(pictures), rtol=1e-5, atol=1e-5
        )


def test_keras_3_file_numbered_by_kind(tmp_path: Path, cache: Path) -> None:
    original = keras_network()
    counts: Counter[str] = Counter()
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for module in original.modules():
            match module:
                case nn.BatchNorm2d():
                    kind = "batch_normalization"
                    parts = [module.weight, module.bias, module.running_mean, module.running_var]
                case nn.Conv2d(groups=1):
                    kind, parts = "conv2d", [module.weight.permute(2, 3, 1, 0)]
                case nn.Conv2d():
                    kind, parts = "depthwise_conv2d", [module.weight.permute(2, 3, 0, 1)]
                case nn.Linear():
                    kind, parts = "dense", [module.weight.t(), module.bias]
                case _:
                    continue
            number = f"_{counts[kind]}" if counts[kind] else ""
            counts[kind] += 1
            for index, part in enumerate(parts):
                file[f"layers/{kind}{number}/vars/{index}"] = part.detach().numpy()
    network = loaded(find_weights(tmp_path / "a.weights.h5", cache), classes=5)
    pictures = blocky_pictures(2, 64, seed=2)
    torch.testing.assert_close(answers(network, pictures), answers(original, pictures))


def test_torchvision_file_gives_torchvisions_answers(tmp_path: Path, cache: Path) -> None:
    theirs = with_statistics(mobilenet_v2(num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    weights = find_weights(tmp_path / "theirs.pth", cache)
    assert (weights.info.padding, weights.info.norm_eps) == ("symmetric", 1e-5)
    assert weights.info.width == 1.0
    assert weights.info.mean == (0.485, 0.456, 0.406)
    pictures = blocky_pictures(2, 64, seed=2)
    network = loaded(weights, classes=7)
    torch.testing.assert_close(answers(network, pictures), answers(theirs, pictures))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_wrappings_of_a_state_dict(
    tmp_path: Path, cache: Path, prefix: str, key: str | None
) -> None:
    original = keras_network()
    state = {prefix + name: tensor for name, tensor in original.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "a.pth.tar")
    weights = find_weights(tmp_path / "a.pth.tar", cache, convention="keras")
    ours = loaded(weights, classes=5).state_dict()
    for name, tensor in original.state_dict().items():
        assert torch.equal(ours[name], tensor) or name.endswith("num_batches_tracked"), name


def test_torchvisions_second_version_is_found(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the transfer, which :func:`fetch` does and other tests look at."""
    calls: list[Any] = []

    def local(url: str, target: Path, **options: Any) -> Path:
        calls.append((url, target, options["sha256"]))
        torch.save(mobilenet_v2().state_dict(), tmp_path / "v2.pth")
        return tmp_path / "v2.pth"

    monkeypatch.setattr("mobilenetv2.network.published.fetch", local)
    info = find_weights("imagenet", cache, width=1.0).info
    published = MobileNet_V2_Weights.IMAGENET1K_V2
    assert calls == [(published.url, cache / "mobilenet_v2-7ebf99e0.pth", "7ebf99e0")]
    preparation = published.transforms()
    assert [info.resize_size] == preparation.resize_size == [232]
    assert [info.image_size] == preparation.crop_size == [224]
    assert list(info.mean) == preparation.mean
    assert list(info.std) == preparation.std
    assert info.num_classes == 1000
    assert info.padding == "symmetric"


def test_convention_of_a_file_can_be_said(tmp_path: Path, cache: Path) -> None:
    torch.save(keras_network().state_dict(), tmp_path / "a.pth")
    info = find_weights(tmp_path / "a.pth", cache, convention="keras").info
    assert (info.padding, info.norm_eps, info.mean) == ("keras", 1e-3, (0.5, 0.5, 0.5))
    save_file(keras_network().state_dict(), tmp_path / "b.safetensors", {"padding": "keras"})
    info = find_weights(tmp_path / "b.safetensors", cache, convention="torchvision").info
    assert (info.padding, info.norm_eps) == ("symmetric", 1e-5)


def test_metadata_of_a_saved_classifier_are_heard(tmp_path: Path, cache: Path) -> None:
    description: dict[str, dict[str, Any]] = {
        "network": {
            "width": 0.6, "strides": [2, 1, 1, 2, 1, 1, 1, 1], "padding": "keras",
            "norm_eps": 0.002,
        },
        "preprocessing": {"mean": [0.1], "std": [0.3]},
    }  # fmt: skip
    state = keras_network(0.6, in_channels=1).state_dict()
    file = tmp_path / "model.safetensors"
    save_file(state, file, {"mobilenetv2": json.dumps(description)})
    info = find_weights(file, cache, in_channels=1).info
    assert (info.width, info.padding, info.norm_eps) == (0.6, "keras", 0.002)
    assert (info.mean, info.std, info.in_channels) == ((0.1,), (0.3,), 1)
    assert info.strides == (2, 1, 1, 2, 1, 1, 1, 1)
    description["network"]["strides"] = None
    save_file(state, file, {"mobilenetv2": json.dumps(description)})
    assert find_weights(file, cache, in_channels=1).info.strides == PAPER_STRIDES
    for strides in ([2, 1], [2, 1, 1, 2, 1, 1, 1, 3], "none", 7):
        description["network"]["strides"] = strides
        save_file(state, file, {"mobilenetv2": json.dumps(description)})
        with pytest.raises(ModelFileError, match="its metadata are wrong"):
            find_weights(file, cache, in_channels=1)


# The head, the report


def test_head_is_loaded_where_classes_agree_and_fresh_where_not(
    tmp_path: Path, cache: Path
) -> None:
    torch.save(keras_network(classes=5).state_dict(), tmp_path / "a.pth")
    weights = find_weights(tmp_path / "a.pth", cache, convention="keras")
    head = ("classifier.1.weight", "classifier.1.bias")

    same = built_for(weights.info, classes=5)
    report = load_weights(same, weights)
    assert len(report.loaded) == 262
    assert report.fresh == report.unused == ()
    assert torch.equal(same.classifier[1].weight, weights.tensors[head[0]])

    other = built_for(weights.info, classes=3)
    before = other.classifier[1].weight.clone()
    report = load_weights(other, weights)
    assert len(report.loaded) == 260
    assert report.fresh == report.unused == head
    assert torch.equal(other.classifier[1].weight, before)
    assert str(report) == (
        "260 tensors loaded from a.pth; fresh in the network: classifier.1.weight, "
        "classifier.1.bias; not used of the weights: classifier.1.weight, classifier.1.bias"
    )


def test_network_built_otherwise_is_refused(tmp_path: Path, cache: Path) -> None:
    write_keras_file(tmp_path / "a.h5", keras_network(), top=False)
    weights = find_weights(tmp_path / "a.h5", cache)
    with pytest.raises(ValueError, match="padding='keras'"):
        load_weights(MobileNetV2(2, width=0.35, norm_eps=1e-3), weights)
    with pytest.raises(ValueError, match=r"norm_eps=0\.001"):
        load_weights(MobileNetV2(2, width=0.35, padding="keras"), weights)
    with pytest.raises(ValueError, match="shapes"):
        load_weights(MobileNetV2(2, width=0.5, padding="keras", norm_eps=1e-3), weights)


def test_random_state_is_left_alone(tmp_path: Path, cache: Path) -> None:
    write_keras_file(tmp_path / "a.h5", keras_network(), top=True)
    weights_files._shapes.cache_clear()
    torch.manual_seed(1)
    find_weights(tmp_path / "a.h5", cache, in_channels=1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


# Grey pictures


@pytest.mark.parametrize("convention", ["keras", "torchvision"])
def test_grey_answers_are_those_for_the_rgb_copy(
    tmp_path: Path, cache: Path, convention: Any
) -> None:
    torch.save(keras_network().state_dict(), tmp_path / "a.pth")
    rgb = find_weights(tmp_path / "a.pth", cache, convention=convention)
    grey = find_weights(tmp_path / "a.pth", cache, convention=convention, in_channels=1)
    assert (grey.info.in_channels, len(grey.info.mean), len(grey.info.std)) == (1, 1, 1)

    pixels = blocky_pictures(2, 64, 1) / 2 + 0.5

    def normalised(pictures: Tensor, info: WeightsInfo) -> Tensor:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (info.mean, info.std))
        return (pictures - mean) / std

    of_grey = normalised(pixels, grey.info)
    of_rgb = normalised(pixels.expand(-1, 3, -1, -1), rgb.info)
    grey_network, rgb_network = loaded(grey, classes=5), loaded(rgb, classes=5)
    grey_stem, rgb_stem = grey_network.features[0](of_grey), rgb_network.features[0](of_rgb)
    # Torchvision's three means differ, and padding is another colour than grey: the first row
    # and column of the stem see it.
    inside = slice(None) if convention == "keras" else slice(1, -1)
    torch.testing.assert_close(
        grey_stem[..., inside, inside], rgb_stem[..., inside, inside], rtol=1e-4, atol=1e-4
    )
    if convention == "keras":
        torch.testing.assert_close(
            answers(grey_network, of_grey), answers(rgb_network, of_rgb), rtol=1e-4, atol=1e-4
        )


def test_grey_weights_are_not_for_rgb(tmp_path: Path, cache: Path) -> None:
    torch.save(keras_network(in_channels=1).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="pictures of 1 channels, not of 3"):
        find_weights(tmp_path / "a.pth", cache)


# Bad files


@pytest.fixture
def sound_files(tmp_path: Path) -> dict[str, Path]:
    network = keras_network()
    files = {end: tmp_path / f"sound.{end}" for end in ("pth", "safetensors", "h5")}
    torch.save(network.state_dict(), files["pth"])
    save_file(network.state_dict(), files["safetensors"])
    write_keras_file(files["h5"], network, top=True)
    return files


@pytest.mark.parametrize("end", ["pth", "safetensors", "h5"])
@pytest.mark.parametrize("share", [0, 1e-5, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_file(sound_files: dict[str, Path], cache: Path, end: str, share: float) -> None:
    file = sound_files[end]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=f"sound.{end} is") as raised:
        find_weights(file, cache)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("end", ["pth", "safetensors", "h5"])
def test_web_page_instead_of_weights(tmp_path: Path, cache: Path, end: str) -> None:
    file = tmp_path / f"page.{end}"
    file.write_text("<!DOCTYPE html><title>Sign in</title>" * 50)
    with pytest.raises(ModelFileError, match="page"):
        find_weights(file, cache)


@pytest.mark.parametrize("end", ["pth", "safetensors", "h5"])
def test_other_width(sound_files: dict[str, Path], cache: Path, end: str) -> None:
    with pytest.raises(ModelFileError, match=r"width 0\.35, asked was width 0\.5"):
        find_weights(sound_files[end], cache, width=0.5)


def test_unknown_width(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save(keras_network(0.6).state_dict(), file)
    assert find_weights(file, cache, width=0.6).info.width == 0.6
    with pytest.raises(ModelFileError, match="no width this program knows"):
        find_weights(file, cache)


def test_keras_file_of_another_network(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "other.h5"
    with h5py.File(file, "w") as hdf5:
        hdf5.attrs["layer_names"] = [b"conv"]
        group = hdf5.create_group("conv")
        group.attrs["weight_names"] = [b"conv/kernel:0"]
        group["conv/kernel:0"] = np.zeros((3, 3, 3, 8), np.float32)
    with pytest.raises(ModelFileError, match="not a MobileNetV2: 1 of 35 conv"):
        find_weights(file, cache)
    with h5py.File(tmp_path / "data.h5", "w") as hdf5:
        hdf5["pictures"] = np.zeros(5)
    with pytest.raises(ModelFileError, match="not a MobileNetV2"):
        find_weights(tmp_path / "data.h5", cache)


def test_keras_file_with_a_tensor_of_another_shape(tmp_path: Path, cache: Path) -> None:
    network = keras_network()
    network.features[3].conv[1][0].weight = nn.Parameter(torch.zeros(48, 1, 5, 5))
    write_keras_file(tmp_path / "a.h5", network, top=False)
    with pytest.raises(ModelFileError, match=r"features\.3\.conv\.1\.0\.weight has shape"):
        find_weights(tmp_path / "a.h5", cache, width=0.35)


def test_keras_file_pointing_elsewhere_is_refused(tmp_path: Path, cache: Path) -> None:
    write_keras_file(tmp_path / "a.h5", keras_network(), top=False)
    write_keras_file(tmp_path / "b.h5", keras_network(), top=False)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["Conv1/Conv1/kernel"]
        file["Conv1/Conv1/kernel"] = h5py.ExternalLink(tmp_path / "b.h5", "Conv1/Conv1/kernel")
    with pytest.raises(ModelFileError, match="other files"):
        find_weights(tmp_path / "a.h5", cache)


def test_keras_file_of_absurd_size_is_refused_unread(tmp_path: Path, cache: Path) -> None:
    write_keras_file(tmp_path / "a.h5", keras_network(), top=False)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["Conv1/Conv1/kernel"]
        file.create_dataset(
            "Conv1/Conv1/kernel", (3, 3, 1 << 30, 16), "f4", chunks=(3, 3, 1024, 16)
        )
    with pytest.raises(ModelFileError, match="more than"):
        find_weights(tmp_path / "a.h5", cache)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, cache: Path, zipped: bool) -> None:
    file, marker = tmp_path / "a.pth", tmp_path / "it_ran"
    content = {"state_dict": Malicious(marker)}
    if zipped:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelFileError, match="more than tensors; code in it was not run"):
        find_weights(file, cache)
    assert not marker.exists()
    torch.load(file, weights_only=False) if zipped else pickle.loads(file.read_bytes())
    assert marker.exists(), "the file was harmless anyway"


def test_small_file_of_a_huge_tensor_is_refused(tmp_path: Path, cache: Path) -> None:
    state = keras_network().state_dict()
    state["classifier.1.weight"] = torch.zeros(1).expand(1 << 40, 1280)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="wrong shape"):
        find_weights(tmp_path / "a.pth", cache)


def test_packed_weights_are_refused_unpacked(tmp_path: Path, cache: Path) -> None:
    torch.save(keras_network().state_dict(), tmp_path / "plain.pth")
    assert find_weights(tmp_path / "plain.pth", cache)
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ModelFileError, match="packed"):
        find_weights(tmp_path / "a.pth", cache)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but a list"),
        ({"features.0.0.weight": torch.zeros(3)}, "259 tensors are missing"),
        ({}, "260 tensors are missing"),
    ],
)
def test_pickle_of_something_else(
    tmp_path: Path, cache: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ModelFileError, match=message):
        find_weights(tmp_path / "a.pt", cache)


def test_numbers_that_are_not_finite(tmp_path: Path, cache: Path) -> None:
    network = keras_network()
    network.features[5].conv[2].weight.data[0] = float("nan")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"features\.5\.conv\.2\.weight has numbers"):
        find_weights(tmp_path / "a.pth", cache)


@pytest.mark.parametrize(
    "metadata",
    [
        {"padding": "valid"},
        {"norm_eps": "small"},
        {"norm_eps": "nan"},
        {"mobilenetv2": "[" * 100_000},
        {"mobilenetv2": "{"},
        {"mobilenetv2": "{}"},
        {"mobilenetv2": "[]"},
        {
            "mobilenetv2": json.dumps(
                {
                    "network": {"width": 0.35, "padding": "keras", "norm_eps": 1e-3},
                    "preprocessing": {"mean": [], "std": []},
                }
            )
        },
    ],
)
def test_metadata_that_make_no_sense(tmp_path: Path, cache: Path, metadata: dict[str, str]) -> None:
    file = tmp_path / "a.safetensors"
    save_file(keras_network().state_dict(), file, metadata)
    with pytest.raises(ModelFileError, match="metadata are wrong"):
        find_weights(file, cache)


def test_unknown_names_and_widths(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ModelFileError, match="Perhaps you meant imagenet"):
        find_weights("imagnet", cache)
    with pytest.raises(ModelFileError, match=r"of width 0\.6, only of 0\.35, 0\.5"):
        find_weights("imagenet", cache, width=0.6)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelFileError, match=r"ends in '\.txt'"):
        find_weights(tmp_path / "notes.txt", cache)


def test_missing_h5py_is_named(
    sound_files: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r'pip install .*\[keras\]"'):
        find_weights(sound_files["h5"], cache)


# Downloads


@dataclass
class Server:
    """What a local web server answers: path → content and the length that it announces."""

    url: str = ""
    files: dict[str, tuple[bytes, int | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, content: bytes, announced: int | None = None) -> None:
        self.files[f"/{name}"] = (content, announced or len(content))


@pytest.fixture
def server() -> Iterator[Server]:
    answers = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers.asked.append(self.path)
            if self.path not in answers.files:
                self.send_error(404)
                return
            content, length = answers.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        answers.url = f"http://127.0.0.1:{web.server_port}"
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield answers
        web.shutdown()
        thread.join()


@pytest.fixture
def keras_content(tmp_path: Path) -> bytes:
    write_keras_file(tmp_path / "published.h5", keras_network(classes=1000), top=False)
    return (tmp_path / "published.h5").read_bytes()


def from_server(server: Server, cache: Path, **options: Any) -> Weights:
    return find_weights("imagenet", cache, width=0.35, base_url=server.url, **options)


def test_real_weights_come_over_the_network(
    server: Server, shared_weights: Path, cache: Path
) -> None:
    server.put(KERAS_FILE, (shared_weights / KERAS_FILE).read_bytes())
    steps: list[tuple[int, int | None]] = []
    weights = from_server(server, cache, progress=lambda done, total: steps.append((done, total)))
    size = (shared_weights / KERAS_FILE).stat().st_size
    assert steps[-1] == (size, size)
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    local = find_weights(shared_weights / KERAS_FILE, cache)
    assert all(torch.equal(weights.tensors[name], local.tensors[name]) for name in local.tensors)
    assert (weights.info.licence, weights.info.image_size) == ("Apache-2.0", 224)
    assert weights.info.resize_size == 256

    from_server(server, cache)
    assert server.asked == [f"/{KERAS_FILE}"], "the second time the cache serves"


@pytest.mark.parametrize(
    ("name", "width", "image_size", "top", "file"),
    [
        ("imagenet", 0.35, (224, 224), False, "0.35_224_no_top"),
        ("imagenet", 0.35, (32, 32), False, "0.35_96_no_top"),
        ("imagenet", 0.5, (112, 112), False, "0.5_128_no_top"),
        ("imagenet", 0.75, (150, 150), True, "0.75_160"),
        ("imagenet", 0.75, (160, 224), False, "0.75_192_no_top"),
        ("imagenet", 0.5, (512, 512), False, "0.5_224_no_top"),
        ("imagenet", 1.3, (96, 96), False, "1.3_224_no_top"),
        ("imagenet", 1.4, (224, 224), True, "1.4_224"),
        ("imagenet-keras", 1.0, (128, 128), False, "1.0_128_no_top"),
        ("imagenet-keras", None, (224, 224), False, "1.0_224_no_top"),
    ],
)
def test_which_file_is_asked_for(
    server: Server,
    cache: Path,
    name: str,
    width: float | None,
    image_size: tuple[int, int],
    top: bool,
    file: str,
) -> None:
    with pytest.raises(ModelFileError, match="404"):
        find_weights(
            name, cache, width=width, image_size=image_size, top=top, base_url=server.url + "/"
        )
    assert server.asked == [f"/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{file}.h5"]


def test_interrupted_transfer_leaves_nothing_and_the_next_succeeds(
    server: Server, cache: Path, keras_content: bytes
) -> None:
    half = keras_content[: len(keras_content) // 2]
    server.put(KERAS_FILE, half, announced=len(keras_content))
    with pytest.raises(ModelFileError, match="broke off") as raised:
        from_server(server, cache)
    assert f"{server.url}/{KERAS_FILE}" in str(raised.value)
    assert f"put it at {cache / KERAS_FILE}" in str(raised.value)
    assert list(cache.iterdir()) == []

    server.put(KERAS_FILE, keras_content)
    assert from_server(server, cache).info.width == 0.35
    names = sorted(path.name for path in cache.iterdir())
    assert names == [KERAS_FILE, f"{KERAS_FILE}.sha256"]
    digest = hashlib.sha256(keras_content).hexdigest()
    assert (cache / f"{KERAS_FILE}.sha256").read_text() == f"{digest}  {KERAS_FILE}\n"


def test_ctrl_c_leaves_nothing(server: Server, cache: Path, keras_content: bytes) -> None:
    server.put(KERAS_FILE, keras_content)

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_server(server, cache, progress=interrupt)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [lambda content: content[:-100], lambda _: b"<html>Sign in</html>", lambda _: b" "],
    ids=["shortened", "page", "blank"],
)
def test_useless_answer_is_not_kept(
    server: Server, cache: Path, keras_content: bytes, spoil: Callable[[bytes], bytes]
) -> None:
    server.put(KERAS_FILE, spoil(keras_content))
    with pytest.raises(ModelFileError, match="not the file sought: the answer is"):
        from_server(server, cache)
    assert list(cache.iterdir()) == []


def test_torchvisions_checksum_is_in_the_file_name(server: Server, cache: Path) -> None:
    server.put("mobilenet_v2-7ebf99e0.pth", b"not those weights")
    with pytest.raises(ModelFileError, match=r"SHA-256 [0-9a-f]{64}, expected 7ebf99e0"):
        find_weights("imagenet", cache, width=1.0, base_url=server.url)
    assert list(cache.iterdir()) == []


def test_file_that_changed_in_the_cache(server: Server, cache: Path, keras_content: bytes) -> None:
    server.put(KERAS_FILE, keras_content)
    from_server(server, cache)
    file = cache / KERAS_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match="has changed since it was downloaded"):
        from_server(server, cache)
    file.unlink()
    from_server(server, cache)


def test_file_put_there_by_hand(server: Server, cache: Path, keras_content: bytes) -> None:
    cache.mkdir()
    (cache / KERAS_FILE).write_bytes(keras_content)
    assert from_server(server, cache).info.width == 0.35
    assert server.asked == []
    assert (cache / f"{KERAS_FILE}.sha256").exists()


def test_known_checksum(server: Server, cache: Path) -> None:
    server.put("a.bin", b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    target = fetch(f"{server.url}/a.bin", cache / "a.bin", sha256=digest)
    assert target.read_bytes() == b"abc"
    assert [path.name for path in cache.iterdir()] == ["a.bin"]
    target.write_bytes(b"abd")
    with pytest.raises(ModelFileError, match="Delete it to download it again"):
        fetch(f"{server.url}/a.bin", target, sha256=digest)


def test_what_a_killed_download_left_is_swept_up(server: Server, cache: Path) -> None:
    server.put("w.h5", b"whole")
    cache.mkdir()
    old, going_on = (cache / f".{digit * 8}.part.w[1].h5" for digit in "ab")
    other = cache / ".aaaaaaaa.part.other.h5"
    for path in (old, going_on, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    fetch(f"{server.url}/w.h5", cache / "w[1].h5")
    assert not old.exists()
    assert going_on.exists()
    assert other.exists()


def test_no_network(cache: Path) -> None:
    with pytest.raises(ModelFileError, match=r"Could not download http://127\.0\.0\.1:9/"):
        find_weights("imagenet", cache, width=0.35, base_url="http://127.0.0.1:9")


def test_cache_that_is_no_folder(server: Server, cache: Path, keras_content: bytes) -> None:
    server.put(KERAS_FILE, keras_content)
    cache.write_text("a file")
    with pytest.raises(ModelFileError, match="File exists"):
        from_server(server, cache)


# Keras itself


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["published", "model", "nested", "keras3"])
@pytest.mark.parametrize(("width", "size"), [(0.35, 224), (0.5, 97), (1.0, 96), (1.3, 128)])
def test_answers_equal_those_of_a_live_keras_network(
    tmp_path: Path, cache: Path, layout: str, width: float, size: int
) -> None:
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    keras.utils.set_random_seed(0)
    shape = (size, size, 3)
    options = {"alpha": width, "input_shape": shape, "weights": None}
    if layout == "nested":
        base = keras.applications.MobileNetV2(include_top=False, pooling="avg", **options)
        dense = keras.layers.Dense(7, activation="softmax")
        theirs = keras.Sequential([keras.Input(shape), base, dense])
    else:
        base = theirs = keras.applications.MobileNetV2(classes=7, **options)
    pictures = blocky_pictures(4, size).permute(0, 2, 3, 1).numpy()
    random = np.random.default_rng(0)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(random.uniform(-0.5, 0.5, layer.beta.shape))
            layer.momentum = 0.0
    theirs(pictures, training=True)  # measures the moving averages

    file = tmp_path / "theirs.h5"
    if layout == "published":
        legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
        with h5py.File(file, "w") as group:
            legacy.save_weights_to_hdf5_group(group, theirs)
    elif layout == "keras3":
        file = tmp_path / "theirs.weights.h5"
        theirs.save_weights(file)
    else:
        theirs.save(file)

    weights = find_weights(file, cache, width=width)
    network = built_for(weights.info, classes=7)
    assert len(load_weights(network, weights).loaded) == 262
    logits = answers(network, torch.from_numpy(pictures).permute(0, 3, 1, 2))
    expected = np.asarray(theirs(pictures, training=False))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-4, rtol=0)
