"""Many parts in one call: as one by one, as stock PyTorch, and whatever changes between steps."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from test_fast_ops import assert_same, random_norms
from test_fast_ops import step as first_step
from torch import nn
from torch.nn.utils import prune

from mobilenetv2.network import cpp_chain, cpp_kernels, kernels
from mobilenetv2.network.cpp_kernels import CppKernels
from mobilenetv2.network.fast_functions import ChainFunction
from mobilenetv2.network.fast_ops import install
from mobilenetv2.network.kernels import Block, Chain, Kernels, MapShape, Part
from mobilenetv2.network.mobilenetv2 import ConvNormActivation, InvertedResidual, MobileNetV2


@pytest.fixture
def prepared(monkeypatch) -> list:
    """Chains that were prepared so far."""
    made = []
    first = cpp_chain.CppChain.__init__

    def prepare(self, functions, chain, dtype):
        made.append(chain)
        first(self, functions, chain, dtype)

    monkeypatch.setattr(cpp_chain.CppChain, "__init__", prepare)
    return made


def network_of(
    channels: int = 1, strides=(2, 1, 1, 2, 1, 1, 1, 1), width: float = 0.35, **options
) -> MobileNetV2:
    """Small; with width 0.1 its first block has a shortcut and no expansion."""
    torch.manual_seed(0)
    network = random_norms(MobileNetV2(3, channels, width, strides, **options))
    network.classifier[0].p = 0.0
    return network.train()


def step(network: nn.Module, x: torch.Tensor, autocast: bool = False) -> dict:
    """What a training step leaves behind; the gradients take the place of the last ones."""
    network.zero_grad()
    return first_step(network, x, autocast, input_learns=False)


def pictures(images: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(images, channels, height, width, generator=generator).double()


# ------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("padding", ["symmetric", "keras"])
@pytest.mark.parametrize(
    ("channels", "size"), [(1, (20, 20)), (2, (9, 12)), (3, (17, 8)), (3, (33, 33)), (4, (16, 16))]
)
@pytest.mark.parametrize("width", [0.1, 0.35])
def test_the_network_on_pictures_equals_the_stock_one(cpp, padding, channels, size, width):
    reference = network_of(channels, width=width, padding=padding).double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, channels, *size)
    assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("padding", ["symmetric", "keras"])
@pytest.mark.parametrize("width", [0.1, 0.35])
def test_a_chain_is_its_parts_one_by_one(cpp, monkeypatch, dtype, threads, padding, width):
    torch.set_num_threads(threads)
    network = network_of(3, width=width, padding=padding)
    network = network.double() if dtype is torch.float64 else network
    network.features[5].conv[0][0].weight.requires_grad = False
    network.features[7].conv[1][1].eval()
    install(network, cpp)
    x = pictures(3, 3, 18, 22).to(torch.float64 if dtype is torch.float64 else torch.float32)
    buffers = copy.deepcopy(network.state_dict())
    at_once = step(network, x, dtype is torch.bfloat16)
    monkeypatch.setattr(CppKernels, "has_chains", False)
    monkeypatch.setattr(ChainFunction, "apply", None)  # nothing of it runs
    network.load_state_dict(buffers)
    assert_same(at_once, step(network, x, dtype is torch.bfloat16), 0)


@pytest.mark.parametrize("wants_x", [True, False])
@pytest.mark.parametrize("learns", [(True, True, True), (False, True, False), (False,) * 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_chain_of_one_block_is_its_kernels_one_by_one(cpp, dtype, learns, wants_x):
    kernels_here, real = cpp_kernels.load(dtype), kernels.real_dtype(dtype)
    for expands, stride, has_shortcut in [(1, 1, 1), (1, 2, 0), (0, 1, 1), (0, 2, 0), (0, 1, 0)]:
        block = InvertedResidual(20, 20, stride, 1 + expands).to(real)
        layers = [*block.conv[:-2], block.conv[-2:]]
        parts = []
        for (conv, norm, *_), wants in zip(layers, learns[-len(layers) :], strict=True):
            nn.init.uniform_(norm.weight, 0.5, 2)
            conv.weight.requires_grad = wants
            parts.append(Part(conv, norm, conv.weight, norm.weight, norm.bias))
        shape = MapShape(2, 5, 7, 20 + 20 * expands, stride, False)
        one = Block(parts, shape, bool(has_shortcut))
        weights = [part.kernel for part in parts]
        x = torch.randn(70, 20, dtype=real).to(dtype)
        with torch.no_grad():
            out, kept = Kernels.block(kernels_here, one, x)
            g = torch.linspace(-1, 1, out.numel(), dtype=real).view(out.shape).to(dtype)
            gx, gradients = Kernels.block_backward(
                kernels_here, g, x, kept, weights, shape, g if has_shortcut else None, wants_x,
                learns[-len(parts) :],
            )  # fmt: skip
            expected = [out, *(buffer.clone() for part in parts for buffer in part.norm.buffers())]
            for part in parts:
                part.norm.reset_running_stats()
            call = kernels_here.chain(
                Chain(None, [one], None, 2, shape.out_height, shape.out_width)
            )
            got, kept = call.forward(x)
            gx_at_once, at_once = call.backward(g, x, kept, weights, wants_x, learns[-len(parts) :])
        results = [got, *(buffer for part in parts for buffer in part.norm.buffers())]
        assert all(map(torch.equal, results, expected))
        if wants_x:
            assert torch.equal(gx_at_once, gx)
        else:
            assert gx_at_once is None
        for one_by_one, together in zip(gradients, at_once, strict=True):
            if one_by_one is not None and together is not None:
                assert torch.equal(one_by_one, together)
        for index, wants in enumerate(learns[-len(parts) :]):
            assert (at_once[3 * index] is None) == (not wants)


def test_gradcheck_of_the_first_convolution(cpp):
    for channels, padding in ((1, "symmetric"), (2, "keras"), (3, "symmetric")):
        stem = ConvNormActivation(channels, 17, 3, 2, padding=padding).double().train()
        install(stem, cpp)
        x = pictures(2, channels, 6, 4)

        def output(weight, scale, stem=stem, x=x):
            names = {"0.weight": weight, "1.weight": scale}
            return torch.func.functional_call(stem, names, (x,))

        inputs = [p.detach().clone().requires_grad_() for p in (stem[0].weight, stem[1].weight)]
        assert torch.autograd.gradcheck(output, inputs)


# ------------------------------------------------------------- what changes between steps


def test_a_chain_is_prepared_once_for_each_size(cpp, prepared):
    network = network_of()
    install(network, cpp)
    for _ in range(3):
        step(network, pictures(3, 1, 12, 12).float())
    assert len(prepared) == 1
    step(network, pictures(2, 1, 12, 12).float())
    step(network, pictures(2, 1, 12, 14).float())
    assert len(prepared) == 3


def move_weights(network: nn.Module) -> None:
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()


def freeze_a_kernel(network: MobileNetV2) -> None:
    network.features[4].conv[2].weight.requires_grad = False


def freeze_a_norm(network: MobileNetV2) -> None:
    network.features[4].conv[3].eval()


def freeze_the_front(network: MobileNetV2) -> None:
    for part in network.features[:5]:
        part.requires_grad_(False)


def evaluate_the_front(network: MobileNetV2) -> None:
    network.features[:5].eval()


def another_momentum(network: MobileNetV2) -> None:
    network.features[3].conv[0][1].momentum = 0.5


def another_epsilon(network: MobileNetV2) -> None:
    network.features[18][1].eps = 0.1


def another_convolution(network: MobileNetV2) -> None:
    torch.manual_seed(5)
    network.features[6].conv[2] = nn.Conv2d(96, 16, 1, bias=False).double()


def another_block(network: MobileNetV2) -> None:
    network.features[6] = nn.Sequential(nn.Conv2d(16, 16, 1).double(), nn.Tanh())
    torch.manual_seed(5)
    for parameter in network.features[6].parameters():
        nn.init.normal_(parameter)


def another_parameter(network: MobileNetV2) -> None:
    weight = network.features[6].conv[3].weight
    network.features[6].conv[3].weight = nn.Parameter(weight.detach() * 2)


CHANGES = [
    move_weights, freeze_a_kernel, freeze_a_norm, freeze_the_front, evaluate_the_front,
    another_momentum, another_epsilon, another_convolution, another_block, another_parameter,
]  # fmt: skip


def other_parameters(network: MobileNetV2) -> None:
    """That lie where the first ones lay."""
    for part in network.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.data)


def another_stride(network: MobileNetV2) -> None:
    assert network.features[4].conv[1][0].stride == (2, 2)
    network.features[4].conv[1][0].stride = (1, 1)


def no_shortcut(network: MobileNetV2) -> None:
    network.features[5].has_shortcut = False


def computed_weights(network: MobileNetV2) -> None:
    nn.utils.parametrizations.weight_norm(network.features[4].conv[0][0])


def computed_weights_of_the_first_part(network: MobileNetV2) -> None:
    prune.random_unstructured(network.features[0][0], "weight", 0.5)
    with torch.no_grad():
        network.features[0][0].weight_orig *= 2  # only a call of the convolution sees it
        network.features[0][0].weight_mask.fill_(1)


def another_activation(network: MobileNetV2) -> None:
    network.features[4].conv[0][2] = nn.SiLU()


def another_activation_of_the_first_part(network: MobileNetV2) -> None:
    network.features[0][2] = nn.Tanh()


def another_activation_of_the_head(network: MobileNetV2) -> None:
    network.features[18][2] = nn.Identity()


def a_longer_layer(network: MobileNetV2) -> None:
    network.features[4].conv[1].append(nn.Tanh())


def another_head(network: MobileNetV2) -> None:
    network.features[18] = nn.Conv2d(112, 1280, 1, bias=False).double()
    nn.init.constant_(network.features[18].weight, 0.01)


CHANGES += [
    another_activation, another_activation_of_the_first_part, another_activation_of_the_head,
    a_longer_layer, another_head,
    other_parameters, another_stride, no_shortcut, computed_weights,
    computed_weights_of_the_first_part,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_seen(cpp, change):
    reference = network_of().double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    for one in (network, reference):
        step(one, x)
        change(one)
    for _ in range(2):
        assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize("change", [freeze_the_front, evaluate_the_front])
def test_nothing_goes_backward_through_what_is_frozen(cpp, prepared, change):
    network = network_of()
    change(network)
    install(network, cpp)
    step(network, torch.randn(2, 1, 12, 12))
    assert prepared[-1].stem is None
    assert len(prepared[-1].blocks) == 17 - 4


def test_weights_may_be_exchanged_around_backward(cpp):
    network = network_of().double()
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    expected = network(x).detach()
    out = network(x)
    own = [parameter.data for parameter in network.features.parameters()]
    others = [torch.full_like(tensor, torch.nan) for tensor in own]
    for parameter, other in zip(network.features.parameters(), others, strict=True):
        parameter.data = other
    out.sum().backward()
    for parameter, tensor in zip(network.features.parameters(), own, strict=True):
        parameter.data = tensor
    assert torch.equal(network(x), expected)


def test_weights_may_move_between_forward_and_backward(cpp):
    network = network_of().double()
    install(network, cpp)
    expected = step(copy.deepcopy(network), pictures(3, 1, 20, 20))
    out = network(pictures(3, 1, 20, 20))
    left = [parameter.data for parameter in network.features.parameters()]
    move_weights(network.features)
    for tensor in left:
        tensor.fill_(torch.nan)  # who still looks there will be seen
    (out * torch.linspace(-9, 9, 9).double().sin().view(3, 3)).sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[f"gradient of {name}"])


def test_a_kernel_may_be_frozen_between_forward_and_backward(cpp):
    """Who learned when the batch went forward gets its gradient."""
    network = network_of().double()
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    expected = step(copy.deepcopy(network), x)
    out = network(x)
    freeze_a_kernel(network)
    move_weights(network.features)
    (out * torch.linspace(-9, 9, 9).double().sin().view(3, 3)).sum().backward()
    for name, parameter in network.features.named_parameters():
        if parameter.requires_grad:
            wanted = expected[f"gradient of features.{name}"]
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-9)


def test_two_batches_may_go_forward_before_one_goes_backward(cpp):
    reference = network_of().double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    for one in (network, reference):
        losses = [one(pictures(3, 1, side, side)).square().sum() for side in (20, 16, 20)]
        (losses[0] + losses[1] * losses[2]).backward()
    for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        error = (ours.grad - theirs.grad).norm()
        assert error < 1e-8 * theirs.grad.norm() + 1e-8


def test_hooks_on_parts_of_the_network_fire(cpp):
    reference = network_of().double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    step(network, x)
    step(reference, x)
    seen = []
    for index in (0, 3, 18):
        network.features[index].register_forward_hook(lambda *_, index=index: seen.append(index))
    assert_same(step(network, x), step(reference, x), 1e-9)
    assert seen == [0, 3, 18]


def test_a_network_that_ran_can_be_copied_pickled_and_forgotten(cpp):
    network = network_of().double()
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    step(network, x)
    copies = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    expected = step(network, x)
    for one in copies:
        assert_same(step(one, x), expected, 0)
    gone = weakref.ref(network)
    del network, one, copies
    gc.collect()
    assert gone() is None


def test_weights_of_another_call_get_their_gradients(cpp):
    """As who computes gradients of functions does it, before and after ordinary steps."""
    reference = network_of().double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    for _ in range(2):
        results = []
        for one in (network, reference):
            others = {name: p.detach().requires_grad_() for name, p in one.named_parameters()}
            torch.func.functional_call(one, others, (x,)).square().sum().backward()
            results.append({name: other.grad for name, other in others.items()})
        assert_same(*results, 1e-9)
        assert_same(step(network, x), step(reference, x), 1e-9)


# ------------------------------------------------------------------- what is not covered


def stem_of(**options) -> nn.Conv2d:
    torch.manual_seed(4)
    options = {"stride": 2, "padding": 1, "bias": False} | options
    return nn.Conv2d(1, 16, 3, **options).double()


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True},
        {"padding_mode": "reflect"},
        {"dilation": 2, "padding": 2},
        {"padding": 0},
        {"padding": "same", "stride": 1},
        {"stride": (1, 2)},
        {"stride": 3},
    ],
    ids=str,
)
def test_another_first_convolution_runs_as_it_is(cpp, options):
    reference = network_of().double()
    reference.features[0][0] = stem_of(**options)
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 21, 20)
    assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize("options", [{"bias": True}, {"padding": 1}, {"stride": 2}], ids=str)
@pytest.mark.parametrize("place", ["features.4.conv.2", "features.18.0"])
def test_another_1x1_convolution_runs_as_it_is(cpp, options, place):
    reference = network_of().double()
    if place.startswith("features.4"):
        reference.features[4].has_shortcut = False
    old = reference.get_submodule(place)
    torch.manual_seed(4)
    new = nn.Conv2d(old.in_channels, old.out_channels, 1, **({"bias": False} | options)).double()
    reference.set_submodule(place, new)
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 21, 20)
    assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize(
    "options", [{"bias": True}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"groups": 24}],
    ids=str,
)  # fmt: skip
def test_another_depthwise_convolution_runs_as_it_is(cpp, options):
    reference = network_of().double()
    reference.features[4].has_shortcut = False
    old = reference.features[4].conv[1][0]
    torch.manual_seed(4)
    options = {"bias": False, "padding": 1, "groups": old.groups} | options
    reference.features[4].conv[1][0] = nn.Conv2d(48, 48, 3, **options).double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 21, 20)
    assert_same(step(network, x), step(reference, x), 1e-9)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pictures_of_other_channels_are_refused_as_by_pytorch(cpp, channels):
    for of_network in {1, 2, 3} - {channels}:
        network = network_of(of_network)
        install(network, cpp)
        with pytest.raises(RuntimeError, match=r"to have . channels, but got"):
            network(torch.randn(2, channels, 12, 12))


def test_features_of_other_channels_are_refused_as_by_pytorch(cpp):
    network = network_of()
    network.features[4] = InvertedResidual(12, 16, 1, 6)
    install(network, cpp)
    with pytest.raises(RuntimeError, match=r"expected input.* to have 12 channels"):
        network(torch.randn(2, 1, 12, 12))


@pytest.mark.parametrize("block", [(8, 8, 2, 6), (8, 16, 1, 6), (8, 16, 1, 1)])
def test_a_shortcut_that_cannot_be_is_refused_as_by_pytorch(cpp, block):
    module = InvertedResidual(*block)
    module.has_shortcut = True
    install(module, cpp)
    with pytest.raises(RuntimeError, match="must match the size"):
        module(torch.randn(2, 8, 6, 6))


@pytest.mark.parametrize("channels", [8, 64])
def test_a_norm_of_other_channels_is_refused_as_by_pytorch(cpp, channels):
    network = network_of()
    network.features[4].conv[3] = nn.BatchNorm2d(channels)
    install(network, cpp)
    with pytest.raises(RuntimeError, match="should contain 16 elements"):
        network(torch.randn(2, 1, 12, 12))


def test_a_network_on_another_device_is_refused(cpp):
    network = network_of().to("meta")
    install(network, cpp)
    with pytest.raises((RuntimeError, NotImplementedError)):
        network(torch.randn(2, 1, 12, 12)).sum().item()


def test_a_block_with_two_expansions_runs_as_it_is(cpp):
    reference = network_of().double()
    expansion = copy.deepcopy(reference.features[4].conv[0])
    expansion[0] = nn.Conv2d(48, 48, 1, bias=False).double()
    reference.features[4].conv.insert(1, expansion)
    square = InvertedResidual(8, 8, 1, 1)  # whose channels would fit
    square.conv.insert(0, ConvNormActivation(8, 8, 1))
    square.conv.insert(0, ConvNormActivation(8, 8, 1))
    reference.features[3] = square.double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    assert_same(step(network, x), step(reference, x), 1e-9)


def test_no_pictures_and_frozen_norms(cpp):
    network = network_of()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    install(network, cpp)
    assert network(torch.randn(0, 1, 12, 12)).shape == (0, 3)


def test_a_hook_within_the_first_part_fires(cpp):
    network = network_of()
    install(network, cpp)
    step(network, torch.randn(2, 1, 12, 12))
    seen = []
    for part in (network.features[0][0], network.features):
        part.register_forward_hook(lambda module, *_: seen.append(module))
        step(network, torch.randn(2, 1, 12, 12))
        assert seen[-1] is part


def test_a_global_hook_sees_the_parts(cpp):
    network = network_of()
    install(network, cpp)
    network(torch.randn(2, 1, 12, 12))
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    network(torch.randn(2, 1, 12, 12))
    handle.remove()
    assert all(any(part is one for one in seen) for part in network.features)


def test_without_gradients_nothing_is_kept(cpp, prepared):
    network = network_of()
    install(network, cpp)
    x = torch.randn(2, 1, 12, 12)
    buffers = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        got = network(x)
    assert max(len(chain.parts) for chain in prepared) == 3  # block after block
    network.load_state_dict(buffers)
    assert torch.equal(network(x), got)


class Doubled(ConvNormActivation):
    """One's own part."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("place", [0, 18])
def test_a_part_of_ones_own_runs_as_it_is(cpp, place):
    reference = network_of().double()
    old = reference.features[place][0]
    own = Doubled(old.in_channels, old.out_channels, old.kernel_size[0], old.stride[0])
    reference.features[place] = own.double()
    network = copy.deepcopy(reference)
    install(network, cpp)
    x = pictures(3, 1, 20, 20)
    assert_same(step(network, x), step(reference, x), 1e-9)
