import pytest
import torch
from torch import nn

from mobilenetv2.network import shared_batch
from mobilenetv2.network.fast_dropout import FastDropout
from mobilenetv2.network.fast_ops import choose, install, remove
from mobilenetv2.network.mobilenetv2 import MobileNetV2

MANY = 400_003  # no multiple of four


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.9])
def test_the_share_that_was_asked_for_is_dropped_and_the_rest_divided_by_the_others(p):
    x = torch.rand(MANY) + 1
    out = FastDropout(p)(x)
    dropped = out == 0
    deviation = (p * (1 - p) / MANY) ** 0.5
    assert abs(dropped.double().mean() - p) < 5 * deviation
    torch.testing.assert_close(out[~dropped], x[~dropped] / (1 - p), rtol=2e-4, atol=0)


def test_the_mean_is_kept_exactly_where_the_share_is_rounded():
    p = 1.6 / 65_536  # becomes two values of 65,536
    kept = FastDropout(p)(torch.ones(1000, dtype=torch.float64)).max()
    assert kept == 65_536 / 65_534


def test_a_single_value_of_65536_is_one():
    kept = (FastDropout(65_535 / 65_536)(torch.ones(10_000_000)) > 0).sum()
    assert 90 < kept < 215  # 153 are expected
    dropped = (FastDropout(1 / 65_536)(torch.ones(10_000_000)) == 0).sum()
    assert 90 < dropped < 215


def test_neighbours_are_drawn_independently():
    kept = (FastDropout(0.5)(torch.ones(MANY - 3)) > 0).double()
    for distance in (1, 2, 3, 4, 5):
        both = (kept[distance:] * kept[:-distance]).mean()
        assert abs(both - 0.25) < 5 * (0.3125 / MANY) ** 0.5, distance  # overlapping products
    for lane in range(4):  # of a word
        assert abs(kept[lane::4].mean() - 0.5) < 5 * (0.25 / (MANY / 4)) ** 0.5, lane


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4), (2, 3, 4, 5)])
def test_gradients_pass_where_values_did(dtype, shape):
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    out = FastDropout(0.3)(x)
    out.sum().backward()
    assert out.shape == x.shape
    assert out.dtype is dtype
    assert torch.equal(x.grad, out.detach())


def test_the_same_seed_drops_the_same():
    out = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        out.append(FastDropout(0.5)(torch.ones(1000)))
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out[0], out[2])


def test_it_is_stock_dropout_where_nothing_is_dropped_or_all():
    x = torch.rand(1000)
    assert torch.equal(FastDropout(0.5).eval()(x), x)
    assert torch.equal(FastDropout(0.0)(x), x)
    assert not FastDropout(1.0)(torch.rand(10_000_000)).any()
    assert FastDropout(1 - 1e-9)(x).isfinite().all()
    changed = x.clone()
    assert FastDropout(0.5, inplace=True)(changed) is changed


@pytest.mark.parametrize("state", ["compiling", "tracing", "elsewhere"])
def test_it_is_stock_dropout_where_it_is_looked_into(state, monkeypatch):
    x = torch.ones(1000, device="meta" if state == "elsewhere" else "cpu")
    if state == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    elif state == "tracing":
        monkeypatch.setattr(torch._C, "_get_tracing_state", object)
    monkeypatch.setattr(nn.Dropout, "forward", lambda *_: "stock")
    assert FastDropout(0.5)(x) == "stock"


@pytest.mark.parametrize("kind", ["cpp", "torch"])
def test_a_network_drops_with_it_and_so_does_one_that_shares_a_batch(kind, compiler):
    network = MobileNetV2(num_classes=10, width=0.1)
    chosen = choose(torch.device("cpu"), kind)
    assert chosen.kind == kind, chosen.reason
    install(network, chosen)
    assert type(network.classifier[0]) is FastDropout
    remove(network)
    assert type(network.classifier[0]) is nn.Dropout
    install(network, chosen)
    shared_batch.install(network, sync_norms=False)
    assert type(network.classifier[0]) is shared_batch.SharedFastDropout
