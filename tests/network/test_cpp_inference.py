"""A whole network in one call for inference: PyTorch's answers, in any batch, by any threads."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from mobilenetv2.network import cpp_inference, native
from mobilenetv2.network.cpp_inference import CppInference
from mobilenetv2.network.first_version import FirstVersion
from mobilenetv2.network.folding import fold_norms
from mobilenetv2.network.mobilenetv2 import PAPER_STRIDES, MobileNetV2

pytestmark = pytest.mark.usefixtures("compiler")
MEAN, SCALE = torch.tensor([118.0, 100.0, 130.0]), 1 / torch.tensor([58.0, 50.0, 60.0])
WIDE_AWAKE = (1, 1, 1, 1, 1, 1, 1, 1)
ALL_TWOS = (2, 2, 2, 2, 2, 2, 2, 2)


def trained(network: nn.Module, channels: int = 3, side: int = 64) -> nn.Module:
    """With norms that fit what passes, so that every layer shows in the logits."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of all batches so far
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    network.train()
    with torch.no_grad():
        network(normalised(pictures(8, channels, side, side, seed=1)))
        nn.init.normal_(network.classifier[1].weight, 0, 0.1)
    return network.eval()


def network_of(channels: int = 3, seed: int = 0, side: int = 64, **options) -> MobileNetV2:
    torch.manual_seed(seed)
    options.setdefault("num_classes", 7)
    network = trained(MobileNetV2(in_channels=channels, **options), channels, side)
    assert isinstance(network, MobileNetV2)
    return network


def pictures(images: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Large shapes and some noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, channels, 5, 5, generator=generator)
    large = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.rand(images, channels, height, width, generator=generator)
    return (255 * (0.8 * large + 0.2 * noise)).to(torch.uint8)


def normalised(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    channels = x.shape[1]
    mean, scale = (part[:channels].to(dtype).view(-1, 1, 1) for part in (MEAN, SCALE))
    return (x.to(dtype) - mean) * scale


def exact(network: nn.Module, x: Tensor) -> Tensor:
    """In float64, unfolded, by PyTorch's operations."""
    double = network.double()
    with torch.inference_mode():
        logits = double(normalised(x, torch.float64))
    network.float()
    return logits


def compiled(network: MobileNetV2, dtype: torch.dtype = torch.float32) -> CppInference:
    channels = network.features[0][0].in_channels
    return CppInference(network, MEAN[:channels], SCALE[:channels], dtype)


def stock(network: MobileNetV2, x: Tensor, dtype: torch.dtype) -> Tensor:
    """PyTorch's operations in that precision, norms folded."""
    folded = fold_norms(network).to(dtype)
    with torch.inference_mode():
        return folded(normalised(x).to(dtype)).double()


SHAPES = [
    # options, picture's height and width
    ({}, (224, 224)),
    ({"width": 0.35}, (97, 130)),
    ({"width": 1.4, "padding": "keras"}, (96, 95)),
    ({"width": 0.75, "padding": "keras", "norm_eps": 1e-3}, (31, 33)),
    ({"width": 0.5, "channels": 1, "strides": (2, 1, 2, 2, 1, 1, 1, 1)}, (28, 28)),
    ({"width": 0.1}, (33, 33)),  # the first block has a shortcut
    ({"width": 0.35, "num_classes": 1000}, (64, 64)),
    ({"width": 0.35, "strides": WIDE_AWAKE, "channels": 1}, (8, 8)),
    ({"width": 0.35, "strides": ALL_TWOS, "padding": "keras"}, (64, 66)),
    ({"width": 0.35}, (1, 1)),
    ({"width": 0.35, "padding": "keras"}, (2, 5)),
    ({"width": 0.35, "strides": (1, 2, 1, 1, 2, 1, 1, 1)}, (6, 200)),
]


@pytest.mark.parametrize(("options", "size"), SHAPES, ids=str)
@pytest.mark.parametrize("images", [1, 5])
def test_as_exact_as_pytorch(options: dict, size: tuple[int, int], images: int) -> None:
    """Against float64: about as far off as PyTorch's own operations in the same precision."""
    network = network_of(**options)
    x = pictures(images, network.features[0][0].in_channels, *size)
    expected = exact(network, x)
    for dtype, least in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        found = compiled(network, dtype).logits(x)
        assert found.dtype == torch.float32
        off = float((found - expected).abs().max())
        theirs = float((stock(network, x, dtype) - expected).abs().max())
        assert off <= max(4 * theirs, least), dtype


@pytest.mark.parametrize("padding", ["symmetric", "keras"])
def test_every_part_of_the_picture_counts(padding: str) -> None:
    """Pictures that the tests above would take for the same if they did not look."""
    network = network_of(width=0.35, padding=padding)
    x = pictures(1, 3, 64, 64)
    others = [x.flip(1), x.flip(2), x.flip(3), x.roll(1, 2), x.roll(1, 3), x.transpose(2, 3)]
    run = compiled(network)
    here = run.logits(x)
    for other in others:
        assert (run.logits(other) - here).abs().max() > 0.01
        torch.testing.assert_close(
            run.logits(other).double(), exact(network, other), atol=1e-4, rtol=1e-4
        )


def test_torchvisions_network() -> None:
    torch.manual_seed(0)
    theirs = trained(mobilenet_v2(num_classes=5))
    ours = MobileNetV2(5)
    ours.load_state_dict(theirs.state_dict())
    x = pictures(3, 3, 96, 96)
    with torch.inference_mode():
        expected = theirs(normalised(x))
    torch.testing.assert_close(compiled(ours.eval()).logits(x), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    width=st.sampled_from([0.1, 0.2, 0.35, 0.5]),
    strides=st.tuples(*[st.sampled_from([1, 2])] * len(PAPER_STRIDES)),
    padding=st.sampled_from(["symmetric", "keras"]),
    channels=st.sampled_from([1, 2, 3]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    images=st.integers(1, 4),
)
def test_any_network(width, strides, padding, channels, size, images) -> None:
    torch.manual_seed(0)
    network = MobileNetV2(3, channels, width, strides, padding=padding).eval()
    trained(network, channels, side=24)
    x = pictures(images, channels, *size)
    expected = exact(network, x)
    off = float((compiled(network).logits(x) - expected).abs().max())
    theirs = float((stock(network, x, torch.float32) - expected).abs().max())
    # Where norms rest on few pixels, rounding grows from layer to layer, and no two ways agree.
    assert off <= max(10 * theirs, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    run = compiled(network_of(width=0.5), dtype)
    x = pictures(9, 3, 72, 60)
    together = run.logits(x, threads=1)
    for threads in (1, 2, 3, 8):
        assert torch.equal(run.logits(x, threads), together)
        for count in (1, 2, 4):  # also fewer than threads
            parts = [run.logits(few, threads) for few in x.split(count)]
            assert torch.equal(torch.cat(parts), together)
    assert torch.equal(run.logits(x.flip(0)).flip(0), together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_shortcut_around_the_first_block_in_bands(dtype: torch.dtype) -> None:
    run = compiled(network_of(width=0.1), dtype)
    x = pictures(1, 3, 96, 400)
    together = run.logits(x, threads=1)
    for threads in (2, 5):
        assert torch.equal(run.logits(x, threads), together)


def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    run = compiled(network_of(width=0.35))
    x = pictures(7, 3, 40, 40)
    together = run.logits(x)
    sizes = []
    first = CppInference._run
    monkeypatch.setattr(cpp_inference, "PIXELS_AT_ONCE", 3 * 1600)
    monkeypatch.setattr(
        CppInference,
        "_run",
        lambda self, few, *rest: sizes.append(len(few)) or first(self, few, *rest),
    )
    assert torch.equal(run.logits(x, threads=1), together)
    assert sizes == [3, 3, 1]


def test_as_many_threads_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = compiled(network_of(width=0.1))
    seen = []
    first = CppInference._run
    monkeypatch.setattr(
        CppInference,
        "_run",
        lambda self, few, threads, *rest: seen.append(threads) or first(self, few, threads, *rest),
    )
    x = pictures(1, 3, 8, 8)
    run.logits(x)
    run.logits(x, 3)
    run.logits(x, 1)
    assert seen == [torch.get_num_threads(), 3, 1]
    for wrong in (0, -1, 10**6):
        with pytest.raises(ValueError, match="threads: from 1 to 1024"):
            run.logits(x, wrong)


@pytest.mark.parametrize(("options", "size"), [*SHAPES, ({"width": 0.35}, (65, 65))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_in_memory_does_not_matter(
    dtype: torch.dtype, options: dict, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of ones are NaN in every precision."""
    network = network_of(side=32, **options)
    run = compiled(network, dtype)
    x = pictures(3, network.features[0][0].in_channels, *size)
    expected = run.logits(x)
    filled = []

    def full(self: CppInference, needed: int) -> Tensor:
        filled.append(torch.full((needed,), 255, dtype=torch.uint8))
        return filled[-1]

    monkeypatch.setattr(CppInference, "_memory", full)
    for threads in (1, 2, 5):
        for few, answers in zip(x.split(2), expected.split(2), strict=True):
            assert torch.equal(run.logits(few, threads), answers)
    assert filled


def test_calls_of_several_threads() -> None:
    run = compiled(network_of(width=0.35))
    x = pictures(24, 3, 48, 48)
    expected = run.logits(x)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            parts = pool.map(lambda few: run.logits(few, threads=1), x.split([1, 7, 2, 8, 3, 3]))
            assert torch.equal(torch.cat(list(parts)), expected)


def test_batches_of_changing_size() -> None:
    """Each call works in memory that an earlier one has left full."""
    run = compiled(network_of(width=0.35))
    for images, side in ((1, 64), (6, 32), (2, 100), (6, 33), (1, 100)):
        x = pictures(images, 3, side, side)
        fresh = compiled(network_of(width=0.35)).logits(x)
        assert torch.equal(run.logits(x), fresh)


def test_no_pictures() -> None:
    assert compiled(network_of(width=0.1)).logits(pictures(1, 3, 8, 8)[:0]).shape == (0, 7)


def test_pictures_that_do_not_lie_in_order() -> None:
    run = compiled(network_of(width=0.35))
    x = pictures(2, 3, 40, 40)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(run.logits(last), run.logits(x))
    wide = torch.zeros(2, 3, 40, 80, dtype=torch.uint8)
    wide[..., ::2] = x
    assert torch.equal(run.logits(wide[..., ::2]), run.logits(x))


def test_the_weights_are_its_own() -> None:
    network = network_of(width=0.35)
    x = pictures(2, 3, 40, 40)
    run = compiled(network)
    before = run.logits(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(run.logits(x), before)
    assert network.features[0][1].num_batches_tracked == 1
    assert compiled(network).logits(x).abs().max() == 0


def test_a_network_in_train_mode_stays_there() -> None:
    network = network_of(width=0.35).train()
    x = pictures(2, 3, 40, 40)
    assert torch.equal(compiled(network).logits(x), compiled(network.eval()).logits(x))
    network.train()
    compiled(network)
    assert all(module.training for module in network.modules())


def test_memory_is_given_back() -> None:
    run = compiled(network_of(width=0.1))
    library, handle = run._library, run._network.handle
    freed = []

    class Library:
        network_new = staticmethod(lambda _: handle)
        network_free = staticmethod(freed.append)

    held = cpp_inference._Prepared(Library, cpp_inference.Description())
    again = copy.copy(held)
    assert held.handle == handle
    del held, again
    gc.collect()
    assert freed == [handle]
    assert library.network_free.restype is None


def test_a_copy_lives_as_long_as_it_is_used() -> None:
    run = compiled(network_of(width=0.1))
    x = pictures(1, 3, 8, 8)
    expected = run.logits(x)
    other = copy.copy(run)
    del run
    gc.collect()
    assert torch.equal(other.logits(x), expected)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run = compiled(network_of(width=0.1))

    class Library:
        network_memory = staticmethod(lambda *_: -1)

    with monkeypatch.context() as patch, pytest.raises(MemoryError, match="too little memory"):
        patch.setattr(run, "_library", Library)
        run.logits(pictures(1, 3, 8, 8))
    Library.network_memory = staticmethod(lambda *_: 2**62)
    monkeypatch.setattr(run, "_library", Library)
    with pytest.raises(MemoryError, match="too little memory"):
        run.logits(pictures(1, 3, 8, 8))


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64], ids=str)
def test_whatever_pytorch_makes_by_default(default: torch.dtype) -> None:
    network = network_of(width=0.35)
    x = pictures(2, 3, 40, 40)
    expected = compiled(network).logits(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        with torch.device("meta"):
            found = compiled(network).logits(x)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("channels", [4, 5])
def test_more_channels(channels: int) -> None:
    torch.manual_seed(0)
    network = MobileNetV2(3, channels, 0.35).eval()
    x = torch.randint(0, 256, (2, channels, 33, 40), dtype=torch.uint8)
    run = CppInference(network, torch.zeros(channels), torch.full((channels,), 1 / 255))
    with torch.inference_mode():
        expected = network(x / 255)
    torch.testing.assert_close(run.logits(x), expected, atol=1e-5, rtol=1e-4)


def test_too_many_channels() -> None:
    network = MobileNetV2(3, 6, 0.1)
    assert "up to 5 channels" in cpp_inference.why_not(network)
    with pytest.raises(ValueError, match="up to 5 channels"):
        CppInference(network, torch.zeros(6), torch.ones(6))


def test_a_mean_for_each_channel() -> None:
    with pytest.raises(ValueError, match="a number for each of 3 channels"):
        CppInference(MobileNetV2(3, width=0.1), MEAN[:1], SCALE)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 0, 8, dtype=torch.uint8),
        torch.tensor(3, dtype=torch.uint8),
    ],
    ids=["float", "grey", "one", "empty", "a number"],
)
def test_what_is_no_picture(wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="pictures must be uint8 N×3×H×W"):
        compiled(network_of(width=0.1)).logits(wrong)


def test_nan_comes_through() -> None:
    network = network_of(width=0.35)
    x = pictures(2, 3, 40, 40)
    with torch.no_grad():
        network.features[5].conv[0][0].weight[3] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        assert compiled(network, dtype).logits(x).isnan().all()


def test_why_not() -> None:
    assert cpp_inference.why_not(MobileNetV2(width=0.1)) == ""
    assert cpp_inference.is_built()
    assert "MobileNetV2 alone" in cpp_inference.why_not(FirstVersion(3))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    cpp_inference._load.cache_clear()
    try:
        assert not cpp_inference.is_built()
        assert "was not found" in cpp_inference.why_not(MobileNetV2(width=0.1))
        with pytest.raises(native.BuildError):
            compiled(network_of(width=0.1))
    finally:
        cpp_inference._load.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_what_the_logits_come_from(dtype):
    network, x = network_of(width=0.35), pictures(5, 3, 64, 64)
    ours = compiled(network, dtype)
    features = ours.features(x)
    assert torch.equal(ours.classify(features), ours.logits(x))
    assert torch.equal(ours.features(x[2:3], threads=1), features[2:3])
    if dtype is torch.float32:
        with torch.inference_mode():
            expected = network.pooled_features(normalised(x))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert ours.classify(features[:0]).shape == (0, 7)
    with pytest.raises(ValueError, match="features must be N×"):
        ours.classify(features[:, 1:])
