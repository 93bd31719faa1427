"""Preparation inside a file, against Pillow, for every size and colour."""

import functools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.runtimes.onnx_network import Graph, finished
from mobilenetv2.runtimes.sessions import onnxruntime_session, openvino_session
from mobilenetv2.shipping.contract import Prepare, metadata
from mobilenetv2.shipping.onnx_contract import add_preparation

CASES = {
    "photo": ("rgb", 224, 224, 256),
    "grey": ("grey", 28, 28, 28),
    "black around": ("rgb", 64, 48, 40),
    "odd": ("grey", 33, 20, 37),
    "one block": ("grey", 8, 8, 8),
}


def classifier_for(colour: str, height: int, width: int, resize: int) -> Classifier:
    channels = 3 if colour == "rgb" else 1
    wanted = Preprocessing(
        colour=colour,
        height=height,
        width=width,
        resize=resize,
        mean=(0.4,) * channels,
        std=(0.3,) * channels,
    )
    torch.manual_seed(0)
    return Classifier.create(NetworkConfig(width=0.1), wanted, ("a", "b"))


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Noise on shapes, so that neighbours differ and no tie is missed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), int)
    return np.clip(smooth + random.integers(-40, 40, smooth.shape), 0, 255).astype(np.uint8)


def preparation_graph(classifier: Classifier) -> bytes:
    from onnx import TensorProto, helper

    graph, wanted = Graph(), classifier.preprocessing
    name = add_preparation(graph, classifier)
    entry = helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", "H", "W", 3])
    shape = ["N", wanted.channels, wanted.height, wanted.width]
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    model: bytes = finished(graph, [entry], [output]).SerializeToString()
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Classifier:
    return classifier_for(*CASES[request.param])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    name=st.sampled_from(sorted(CASES)),
    seed=st.integers(0, 99),
)
def test_prepared_as_by_pillow(height: int, width: int, name: str, seed: int) -> None:
    classifier = classifier_for(*CASES[name])
    pixels = picture(seed, height, width)
    expected = classifier.prepare(pixels)
    result = Prepare(classifier.preprocessing)(torch.from_numpy(pixels)[None])
    assert torch.equal(result[0], expected.float())


def test_a_file_does_not_tell_where_things_lay() -> None:
    training = {"data": "/home/me/secret/photos", "weights": "C/secret/a.h5", "run": "secret/one"}
    classifier = replace(classifier_for(*CASES["grey"]), training=training | {"epochs": 3})
    texts = metadata(classifier)
    assert "secret" not in "".join(texts.values())
    assert json.loads(texts["mobilenetv2"])["training"] == {
        "data": "photos", "weights": "a.h5", "run": "one", "epochs": 3,
    }  # fmt: skip


SIZES = [(28, 28), (224, 224), (400, 300), (300, 400), (641, 97), (97, 641), (30, 40), (9, 500)]
THIN = [(1, 1), (1, 9), (1, 5000), (2, 5000), (5000, 3), (11_000, 8), (14, 11_000)]
"""Resized, they are up to 1.4 million pixels long; int32 ends at 46,341²."""


@pytest.mark.parametrize(
    "sizes", [[*SIZES, THIN[-1]], pytest.param(THIN, marks=pytest.mark.slow)], ids=["usual", "thin"]
)
@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_every_runtime_prepares_as_pillow(
    library: str, sizes: list[tuple[int, int]], case: Classifier
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(library)
    model = preparation_graph(case)
    run: Any = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}[library](model)
    for seed, size in enumerate(sizes):
        both = np.stack([picture(seed, *size), picture(seed + 50, *size)])
        (result,) = run(both).values()
        expected = np.stack([case.prepare(one).numpy() for one in both])
        assert np.array_equal(result, expected), size


@pytest.mark.slow
def test_a_very_large_picture(case: Classifier) -> None:
    pixels = picture(0, 3000, 2000)
    result = Prepare(case.preprocessing)(torch.from_numpy(pixels)[None])
    # Sums of more than 32 pixels with the lower halves may be rounded: one picture in a thousand.
    assert (result[0] - case.prepare(pixels).float()).abs().max() <= 1
    assert (result[0] == case.prepare(pixels)).float().mean() > 0.9999


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5000), (300, 400)])
@pytest.mark.parametrize("name", ["photo", "one block"])
def test_an_exported_program_takes_any_size(name: str, size: tuple[int, int]) -> None:
    case = classifier_for(*CASES[name])
    pixels = picture(3, *size)
    program = exported(case.preprocessing)
    result = program.module()(torch.from_numpy(pixels)[None])
    assert torch.equal(result[0], case.prepare(pixels).float())


def test_no_shape_of_a_program_is_an_expression() -> None:
    """Reading them back takes longer than everything else that loading does."""
    nodes = exported(classifier_for(*CASES["photo"]).preprocessing).graph.nodes
    values = [node.meta["val"] for node in nodes if "val" in node.meta]
    sides = [str(side) for one in values if isinstance(one, torch.Tensor) for side in one.shape]
    assert len(sides) > 100
    assert max(map(len, sides)) < 10, max(sides, key=len)


@functools.cache
def exported(wanted: Preprocessing) -> torch.export.ExportedProgram:
    shapes = dict.fromkeys((0, 1, 2), torch.export.Dim.DYNAMIC)
    example = torch.zeros(2, wanted.height + 3, wanted.width + 5, 3, dtype=torch.uint8)
    return torch.export.export(Prepare(wanted).eval(), (example,), dynamic_shapes=(shapes,))
