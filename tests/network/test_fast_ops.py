import copy

import pytest
import torch
from torch import nn

from mobilenetv2.network import cpp_kernels
from mobilenetv2.network.fast_ops import FastOps, choose, install, prepare_allocator, remove
from mobilenetv2.network.fast_repairs import StridedDepthwise
from mobilenetv2.network.mobilenetv2 import (
    ConvNormActivation,
    InvertedResidual,
    MobileNetV2,
    stride_plan,
)

CPU = torch.device("cpu")


@pytest.fixture(params=["cpp", "torch"])
def fast(request) -> FastOps:
    return request.getfixturevalue("cpp") if request.param == "cpp" else choose(CPU, "torch")


def random_norms(module: nn.Module) -> nn.Module:
    """Norms as after some training, so that masks and biases matter."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 3)
            nn.init.normal_(part.running_mean)
    return module


def step(
    module: nn.Module, x: torch.Tensor, autocast: bool = False, input_learns: bool = True
) -> dict:
    """Everything that a training step leaves behind: output, gradients, buffers."""
    x = x.clone().requires_grad_(input_learns)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        out = module(x)
    weight = torch.linspace(-9, 9, out.numel(), dtype=x.dtype, device=x.device).sin()
    weight = weight.view(out.shape)
    (out.to(x.dtype) * weight).sum().backward()
    results = {"out": out.detach(), "gradient of the input": x.grad}
    results |= {f"gradient of {name}": p.grad for name, p in module.named_parameters()}
    return results | {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same(got: dict, expected: dict, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, reference in expected.items():
        if reference is None:
            assert got[name] is None, name
            continue
        error = (got[name].double() - reference.double()).norm()
        # Some gradients are zero but for rounding (a bias in front of another norm): 1 is the
        # scale of the values that they are sums of.
        assert error <= tolerance * (reference.double().norm() + 1), (name, error)


def away_from_the_kinks(module: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """An input for which no rounding error decides whether ReLU6 lets a gradient pass."""
    nearest = torch.tensor(0.0)

    def watch(_module, inputs):
        nonlocal nearest
        for kink in (0, 6):
            nearest = min(nearest, (inputs[0] - kink).abs().min())

    handles = [m.register_forward_pre_hook(watch) for m in module.modules() if type(m) is nn.ReLU6]
    buffers = copy.deepcopy(module.state_dict())
    while nearest < 2e-5:
        nearest = torch.tensor(torch.inf)
        x = torch.randn(shape)
        module(x.double())
    module.load_state_dict(buffers)
    for handle in handles:
        handle.remove()
    return x


def frozen(module: nn.Module) -> nn.Module:
    """Norms as in fine-tuning: their statistics stay."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2)
            part.eval()
    return module


BLOCKS = {
    "shortcut": (lambda: InvertedResidual(8, 8, 1, 6), 8),
    "stride 2": (lambda: InvertedResidual(8, 12, 2, 6), 8),
    "no expansion": (lambda: InvertedResidual(16, 8, 1, 1), 16),
    "no expansion, shortcut": (lambda: InvertedResidual(24, 24, 1, 1), 24),
    "no expansion, stride 2": (lambda: InvertedResidual(5, 3, 2, 1), 5),
    "odd channels": (lambda: InvertedResidual(3, 7, 1, 9), 3),
    "many channels": (lambda: InvertedResidual(52, 44, 1, 5), 52),
    "stem": (lambda: ConvNormActivation(3, 17, 3, 2), 3),
    "head": (lambda: ConvNormActivation(3, 40, 1), 3),
    "keras padding": (lambda: InvertedResidual(8, 8, 2, 2, padding="keras"), 8),
    "keras padding, no expansion": (lambda: InvertedResidual(17, 3, 2, 1, padding="keras"), 17),
    "frozen norms": (lambda: frozen(InvertedResidual(8, 8, 1, 6)), 8),
    "frozen norms, stride 2": (lambda: frozen(InvertedResidual(8, 7, 2, 2)), 8),
    "frozen norms, keras padding": (
        lambda: frozen(InvertedResidual(3, 8, 2, 6, padding="keras")), 3,
    ),
    "frozen stem": (lambda: frozen(ConvNormActivation(3, 17, 3, 2, padding="keras")), 3),
}  # fmt: skip
SIZES = [(2, 5, 7), (1, 8, 6), (3, 4, 4), (5, 1, 2), (1, 9, 1)]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_equals_the_stock_one_in_double(fast, block):
    torch.manual_seed(0)
    build, channels = BLOCKS[block]
    for images, height, width in SIZES:
        module = random_norms(build())
        double, single = copy.deepcopy(module).double(), copy.deepcopy(module)
        reference = copy.deepcopy(double)
        install(double, fast)
        install(single, fast)
        x = away_from_the_kinks(reference, (images, channels, height, width))
        expected = step(reference, x.double())
        assert_same(step(double, x.double()), expected, 1e-12)
        assert_same(step(single, x), expected, 1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_is_as_near_to_the_truth_as_stock_autocast(fast, block):
    torch.manual_seed(1)
    build, channels = BLOCKS[block]
    stock = random_norms(build())
    module, truth = copy.deepcopy(stock), copy.deepcopy(stock).double()
    install(module, fast)
    # Pixels that fill blocks of 32, and such as leave over more than 16 and less, odd numbers.
    for images, height, width, slack in ((4, 9, 8, 2**-7), (3, 9, 7, 2**-5), (1, 9, 11, 2**-5)):
        x = torch.randn(images, channels, height, width)
        assert_as_near_as_stock(module, stock, truth, x, slack)


def assert_as_near_as_stock(module, stock, truth, x, slack):
    """Of a step in bfloat16: about as near to the truth in double as stock PyTorch's.

    Luck has a part in it where pixels are few: a ReLU6 that opens for one of them moves a gradient.
    """
    module, stock, truth = (copy.deepcopy(one) for one in (module, stock, truth))
    x = x.bfloat16()
    exact = step(truth, x.double())
    got, reference = step(module, x, autocast=True), step(stock, x, autocast=True)
    assert got["out"].dtype is torch.bfloat16
    for name in exact:
        if exact[name] is None:
            assert got[name] is None, name
            continue
        scale = exact[name].double().norm() + 1
        error, stock_error = ((r[name].double() - exact[name]).norm() for r in (got, reference))
        assert error <= 2 * stock_error + slack * scale, (name, error, stock_error, scale)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("frozen_names", [(), ("conv.2",), ("conv.0.0",)])
@pytest.mark.parametrize(("size", "slack"), [((9, 40, 23, 19), 2**-7), ((1, 40, 4, 5), 2**-5)])
def test_many_pixels_and_few_in_bfloat16(cpp, threads, frozen_names, size, slack):
    """Several tiles for every thread, and fewer pixels than channels; parts want no gradient."""
    torch.manual_seed(1)
    stock = random_norms(InvertedResidual(40, 24, 1, 6))
    for name, parameter in stock.named_parameters():
        parameter.requires_grad = not name.startswith(frozen_names)
    module, truth = copy.deepcopy(stock), copy.deepcopy(stock).double()
    install(module, cpp)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_as_near_as_stock(module, stock, truth, torch.randn(size), slack)
    finally:
        torch.set_num_threads(before)


def test_the_pooled_head_in_bfloat16(cpp):
    """One row of gradients for all pixels of a picture."""
    stock = random_norms(small_network())
    network, truth = copy.deepcopy(stock), copy.deepcopy(stock).double()
    install(network, cpp)
    x = torch.randn(5, 1, 20, 20)
    exact = step(truth, x.double())
    got, reference = step(network, x, autocast=True), step(stock, x, autocast=True)
    last = len(stock.features) - 1
    for name in (f"features.{last}.0.weight", f"features.{last}.1.weight", "classifier.1.weight"):
        (found,) = (key for key in exact if key.endswith(name))
        error, stock_error = ((r[found].double() - exact[found]).norm() for r in (got, reference))
        assert error <= 1.5 * stock_error + 2**-7 * exact[found].norm(), (name, error, stock_error)


def test_what_lay_in_memory_before_does_not_matter(cpp):
    """Left sides are padded, here from 48 and 24 channels to 64 and 32, with zeros."""
    stock = InvertedResidual(8, 24, 1, 6)
    module = copy.deepcopy(stock)
    install(module, cpp)
    x = torch.randn(4, 8, 9, 8)
    clean = step(copy.deepcopy(module), x, autocast=True)
    for size in (1 << 10, 1 << 14, 1 << 18, 1 << 22):
        littered = [torch.full((size,), torch.nan, dtype=torch.bfloat16) for _ in range(8)]
        del littered
    again = step(module, x, autocast=True)
    for name in clean:
        assert torch.equal(clean[name], again[name]), name


def test_a_counter_of_another_dtype_is_left_to_the_stock_code(cpp):
    """As of a state dict that was halved as a whole: the kernels write eight bytes."""
    module = InvertedResidual(8, 8, 1, 6)
    counters = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    counters[0].num_batches_tracked = torch.tensor(100.0)
    counters[1].num_batches_tracked = None
    install(module, cpp)
    step(module, torch.randn(2, 8, 4, 4))
    assert counters[0].num_batches_tracked == 101
    counters[0].num_batches_tracked = torch.tensor(7)
    step(module, torch.randn(2, 8, 4, 4))
    assert counters[0].num_batches_tracked == 8
    assert counters[1].num_batches_tracked is None
    assert counters[2].num_batches_tracked == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_gradcheck(fast, block):
    torch.manual_seed(1)
    build, channels = BLOCKS[block]
    module = random_norms(build()).double()
    install(module, fast)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_gradcheck_of_the_strided_depthwise_convolution():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(3, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(StridedDepthwise.apply, (x, kernel))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1), (2, 2)], ids=str)
def test_repaired_taps_that_see_only_padding_have_no_gradient(size, monkeypatch):
    """PyTorch leaves what was in memory there; NaN here, as memory cannot be relied on."""
    torch.manual_seed(0)
    kernel = torch.randn(8, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(6, 8, *size, dtype=torch.float64)
    torch.nn.functional.conv2d(x, kernel, None, 2, 1, 1, 8).sum().backward()
    expected, kernel.grad = kernel.grad, None
    own = torch.ops.aten.convolution_backward

    def leaving_rubbish(*given):
        gx, g_kernel, g_bias = own(*given)
        unseen = torch.zeros(3, 3, dtype=torch.bool)
        unseen[::2] |= size[0] == 1
        unseen[:, ::2] |= size[1] == 1
        return gx, g_kernel.masked_fill(unseen, float("nan")), g_bias

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.aten, "convolution_backward", leaving_rubbish)
        StridedDepthwise.apply(x, kernel).sum().backward()
    torch.testing.assert_close(kernel.grad, expected)


@pytest.mark.parametrize(
    ("kind", "size", "dtype", "repaired"),
    [
        ("off", (1, 1), torch.bfloat16, True),
        ("off", (4, 1), torch.bfloat16, True),
        ("off", (2, 2), torch.bfloat16, False),
        ("off", (1, 1), torch.float32, False),
        ("torch", (2, 2), torch.bfloat16, True),
        ("torch", (1, 1), torch.float32, False),
    ],
)
def test_stock_operations_are_repaired_where_they_are_wrong(
    kind, size, dtype, repaired, monkeypatch
):
    torch.manual_seed(0)
    module = ConvNormActivation(8, 8, 3, 2, groups=8)
    x = torch.randn(6, 8, *size)
    truth = step(copy.deepcopy(module).double(), x.double())
    install(module, FastOps(kind, ""))
    taken = []
    own = StridedDepthwise.apply
    monkeypatch.setattr(StridedDepthwise, "apply", lambda *given: taken.append(1) or own(*given))
    got = step(module, x, autocast=dtype is torch.bfloat16)
    assert bool(taken) is repaired
    module.eval()(x)
    assert len(taken) == repaired
    unseen = truth["gradient of 0.weight"] == 0  # taps that see nothing but padding
    assert unseen.any()
    assert not got["gradient of 0.weight"][unseen].any()


def small_network(side: int = 20, **settings) -> MobileNetV2:
    torch.manual_seed(2)
    settings = {"in_channels": 1, "width": 0.1, "dropout": 0} | settings
    return MobileNetV2(10, strides=stride_plan(side, side), **settings)


@pytest.mark.parametrize("side", [20, 33])
def test_the_network_equals_the_stock_one(fast, side):
    reference = small_network(side).double()
    network = copy.deepcopy(reference)
    install(network, fast)
    x = torch.randn(3, 1, side, side, dtype=torch.float64)
    assert_same(step(network, x), step(reference, x), 1e-9)


def test_the_network_in_float32_equals_the_stock_one_in_double(fast):
    stock = small_network()
    for part in stock.modules():
        if isinstance(part, nn.BatchNorm2d):  # every value between the kinks of ReLU6
            nn.init.uniform_(part.weight, 0.2, 0.4)
            nn.init.constant_(part.bias, 3)
    network, truth = copy.deepcopy(stock), copy.deepcopy(stock).double()
    install(network, fast)
    x = torch.randn(8, 1, 20, 20)
    got, reference, exact = step(network, x), step(stock, x), step(truth, x.double())
    for name in exact:
        scale = exact[name].double().norm() + 1
        error, stock_error = ((r[name].double() - exact[name]).norm() for r in (got, reference))
        # Rounding adds up through 52 layers, in the stock network as well.
        assert error <= max(1e-5 * scale, 1.5 * stock_error), (name, error, stock_error)


def test_several_steps_and_a_momentum_of_ones_own(fast):
    network = small_network(norm_momentum=0.03, norm_eps=1e-3).double()
    reference = copy.deepcopy(network)
    install(network, fast)
    for seed in range(3):
        x = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(seed))
        got, expected = step(network, x.double()), step(reference, x.double())
    assert_same(got, expected, 1e-9)
    assert network.features[3].conv[3].num_batches_tracked == 3


def test_a_mean_far_from_zero_costs_no_digits(cpp):
    torch.manual_seed(3)
    module = ConvNormActivation(4, 16, 1)
    module[0].weight.data.mul_(1e-2).add_(5)
    reference = copy.deepcopy(module).double()
    install(module, cpp)
    x = 20 + torch.rand(4, 4, 8, 8)
    with torch.no_grad():
        module(x)
        exact = reference[0](x.double()).var((0, 2, 3))
    var = (module[1].running_var - 0.9) / 0.1
    torch.testing.assert_close(var.double(), exact, rtol=2e-2, atol=0)


@pytest.mark.parametrize(("channels", "expansion"), [(8, 2), (4, 2), (1, 3)])
def test_nan_and_infinity_come_through(cpp, channels, expansion):
    """In blocks of 16 channels, of 8, and one by one."""
    for dtype, autocast in ((torch.float64, False), (torch.float32, False), (torch.float32, True)):
        for value in (torch.nan, torch.inf):
            module = InvertedResidual(channels, 7, 1, expansion).to(dtype)
            install(module, cpp)
            x = torch.randn(2, channels, 4, 4, dtype=dtype)
            x[0, 0, 0, 0] = value
            results = step(module, x, autocast)
            assert results["out"].isnan().any()
            assert results["gradient of the input"].isnan().any()


def test_the_same_threads_give_the_same_bits(fast):
    network = small_network()
    install(network, fast)
    x = torch.randn(5, 1, 20, 20)
    first, second = (step(copy.deepcopy(network), x, autocast=True) for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads(cpp, threads):
    reference = small_network().double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = torch.randn(2, 1, 20, 20, dtype=torch.float64)
    torch.set_num_threads(threads)
    assert_same(step(network, x), step(reference, x), 1e-9)


def test_any_memory_layout(fast):
    reference = small_network(in_channels=3).double()
    network = copy.deepcopy(reference).to(memory_format=torch.channels_last)
    install(network, fast)
    x = torch.randn(2, 3, 20, 20, dtype=torch.float64)
    expected = step(reference, x)
    assert_same(step(network, x.to(memory_format=torch.channels_last)), expected, 1e-9)
    block = network.features[2]
    features = torch.randn(2, 4, 20, 20, dtype=torch.float64)[:, :, ::2, ::2]
    stock = copy.deepcopy(block)
    remove(stock)
    for module in (block, stock):
        module.zero_grad()
    assert_same(step(block, features), step(stock, features), 1e-9)


@pytest.mark.parametrize(
    "frozen",
    [
        "features.0",
        "features.1.conv.0",
        "features.1.conv.1",
        "features.3.conv.0",
        "features.3.conv.0.1",
        "features.3.conv.3",
        "features.3.conv.1",
        "features.3.conv.2",
        "features.5",
        "features.18",
        "features.0. features.1.",
        "features.0. features.1. features.2.",
    ],
)
def test_frozen_parts_get_no_gradient_and_the_others_the_same(fast, frozen):
    reference = small_network().double()
    for name, parameter in reference.named_parameters():
        parameter.requires_grad = not name.startswith(tuple(frozen.split()))
    network = copy.deepcopy(reference)
    install(network, fast)
    x = torch.randn(2, 1, 20, 20, dtype=torch.float64)
    assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize("block", BLOCKS)
def test_an_input_may_need_no_gradient(fast, block):
    """As behind frozen blocks, or where they are pictures."""
    build, channels = BLOCKS[block]
    for images, height, width in SIZES:
        reference = random_norms(build()).double()
        module = copy.deepcopy(reference)
        install(module, fast)
        x = torch.randn(images, channels, height, width, dtype=torch.float64)
        expected = step(reference, x, input_learns=False)
        assert_same(step(module, x, input_learns=False), expected, 1e-12)


class Wrapped(nn.Module):
    """A layer that is no convolution, and has no weight of its own."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.inner = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def test_a_block_may_have_other_layers(fast):
    block = InvertedResidual(8, 8, 1, 6)
    block.conv[2] = Wrapped(block.conv[2])
    install(block, fast)
    x = torch.randn(2, 8, 5, 5)
    for training in (True, False):
        assert block.train(training)(x).isfinite().all()


@pytest.mark.parametrize("block", ["shortcut", "no expansion, shortcut"])
def test_a_graph_that_is_kept_goes_backwards_twice(fast, block):
    build, channels = BLOCKS[block]
    module = random_norms(build()).double()
    install(module, fast)
    x = torch.randn(2, channels, 5, 7, dtype=torch.float64, requires_grad=True)
    out = module(x).square().sum()
    out.backward(retain_graph=True)
    once = [x.grad.clone(), *(p.grad.clone() for p in module.parameters())]
    out.backward()
    for first, both in zip(once, [x.grad, *(p.grad for p in module.parameters())], strict=True):
        assert torch.equal(2 * first, both)


def test_a_frozen_norm_keeps_its_statistics(fast):
    reference = small_network().double()
    for part in (reference.features[2].conv[0][1], reference.features[4], reference.features[-1]):
        part.eval()
    network = copy.deepcopy(reference)
    install(network, fast)
    x = torch.randn(2, 1, 20, 20, dtype=torch.float64)
    assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize("side", [32, 33])
def test_fine_tuning_runs_on_the_kernels(cpp, side, monkeypatch):
    """With Keras' padding and norms that keep their statistics, and nothing falls back."""
    reference = frozen(random_norms(small_network(side, padding="keras"))).double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = torch.randn(2, 1, side, side, dtype=torch.float64)
    expected = step(reference, x)

    def stock(*_):
        raise AssertionError("the stock code ran")

    for part in (InvertedResidual, ConvNormActivation):
        monkeypatch.setattr(part, "forward", stock, raising=False)
    assert_same(step(network, x), expected, 1e-9)


def test_evaluation_is_the_stock_one(fast):
    network = small_network()
    install(network, fast)
    network(torch.randn(4, 1, 20, 20))
    network.eval()
    x = torch.randn(1, 1, 20, 20)
    fast_logits = network(x)
    remove(network)
    assert torch.equal(fast_logits, network(x))


def test_a_batch_with_one_value_per_channel_is_refused_as_by_pytorch(fast):
    block = InvertedResidual(8, 8, 1, 6)
    install(block, fast)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 8, 1, 1))


def test_install_and_remove_change_nothing_but_classes(fast):
    network = small_network()
    state, classes = network.state_dict(), [type(m) for m in network.modules()]
    install(network, fast)
    assert [type(m) for m in network.modules()] != classes
    assert list(network.state_dict()) == list(state)
    install(network, fast)
    remove(network)
    remove(network)
    assert [type(m) for m in network.modules()] == classes


def test_off_is_off():
    network = small_network()
    install(network, choose(CPU, "off"))
    assert type(network) is MobileNetV2


def test_export_after_remove(fast):
    network = small_network()
    install(network, fast)
    network(torch.randn(4, 1, 20, 20))
    remove(network)
    network.eval()
    x = torch.randn(2, 1, 20, 20)
    program = torch.export.export(network, (x,))
    assert torch.allclose(program.module()(x), network(x), atol=1e-6)


def test_torch_compile_sees_the_stock_network(fast):
    block = InvertedResidual(8, 8, 1, 6)
    reference = copy.deepcopy(block)
    install(block, fast)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    x = torch.randn(2, 8, 4, 4)
    assert torch.allclose(compiled(x), reference(x), atol=1e-5)


@pytest.fixture
def nothing_loaded():
    cpp_kernels.load.cache_clear()
    yield
    cpp_kernels.load.cache_clear()


def test_without_a_compiler_pytorch_alone_does_it(monkeypatch, nothing_loaded):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for requested in ("auto", "cpp"):
        chosen = choose(CPU, requested)
        assert chosen.kind == "torch"
        assert "no-such-compiler was not found" in chosen.reason


def test_only_what_is_wanted_is_compiled(monkeypatch, nothing_loaded):
    built = []
    monkeypatch.setattr(cpp_kernels.native, "build", lambda *wanted: built.append(wanted) or "")
    monkeypatch.setattr(cpp_kernels, "CppKernels", lambda library, _: library)
    assert choose(CPU, "auto").kind == "cpp"
    assert choose(CPU, "auto", torch.bfloat16).kind == "cpp"
    assert choose(CPU, "auto", torch.bfloat16).kind == "cpp"
    assert [flag for _, flag in built] == ["-DSTORED=float", "-DSTORED=bf16"]


def test_who_must_wait_is_told(tmp_path, monkeypatch, nothing_loaded):
    """Once: what lies in the cache is there at once, and without a compiler nothing is made."""
    monkeypatch.setenv("MOBILENETV2_CACHE", str(tmp_path))
    source = tmp_path / "fast_ops.cpp"
    source.write_text("int nothing;")
    monkeypatch.setattr(cpp_kernels, "SOURCE", source)
    monkeypatch.setattr(cpp_kernels, "CppKernels", lambda library, _: library)
    told = []
    for _ in range(2):
        assert choose(CPU, "auto", torch.float32, told.append).kind == "cpp"
        cpp_kernels.load.cache_clear()
    assert [line.partition(" for")[0] for line in told] == ["compiling the fast operations"]
    for requested in ("torch", "off"):
        choose(CPU, requested, torch.bfloat16, told.append)
    monkeypatch.setenv("CXX", "no-such-compiler")
    choose(CPU, "auto", torch.bfloat16, told.append)
    monkeypatch.setattr(cpp_kernels, "SOURCE", tmp_path / "gone.cpp")
    assert choose(CPU, "auto", torch.bfloat16, told.append).kind == "torch"
    assert len(told) == 1


def test_other_devices_need_no_fast_operations():
    chosen = choose(torch.device("meta"), "auto")
    assert chosen.kind == "off"
    assert "meta" in chosen.reason


def test_preparing_the_allocator_twice_is_harmless():
    prepare_allocator()
    prepare_allocator()
    assert torch.ones(1 << 20).sum() == 1 << 20
