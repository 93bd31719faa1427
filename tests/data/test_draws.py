"""Keyed draws: SplitMix64, uniform, independent, and the same whoever asks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilenetv2.data import draws as drawing
from mobilenetv2.data.draws import permutation, uniform


def test_draws_are_uniform_and_independent() -> None:
    draws = uniform(0, 0, torch.arange(100_000), 4)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 50)
    expected = draws.numel() / 50
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 100  # 49 degrees of freedom: p below 1e-4
    other_epoch, other_seed = (
        uniform(0, 1, torch.arange(100_000), 4),
        uniform(1, 0, torch.arange(100_000), 4),
    )
    columns = torch.cat([draws, other_epoch, other_seed], 1)
    correlation = torch.corrcoef(columns.T) - torch.eye(12)
    assert correlation.abs().max() < 0.02
    neighbours = torch.corrcoef(torch.stack([draws[:-1, 0], draws[1:, 0]]))
    assert abs(float(neighbours[0, 1])) < 0.02


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10_000))
def test_draws_accept_every_seed(seed: int, epoch: int) -> None:
    draws = uniform(seed, epoch, torch.arange(64), 2)
    assert len(draws.unique()) > 100
    assert sorted(permutation(seed, epoch, 9).tolist()) == list(range(9))


def test_the_mixing_is_splitmix64() -> None:
    """The first numbers of the published generator from seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    state, numbers = torch.tensor([1234567]), []
    for _ in published:
        numbers.append(int(drawing._mix(state)) % 2**64)
        state = state + drawing._signed(drawing._INCREMENT)
    assert numbers == published


@given(st.permutations(range(30)))
def test_order_and_company_do_not_matter(order: list[int]) -> None:
    whole = uniform(5, 2, torch.arange(30), 3)
    assert torch.equal(uniform(5, 2, torch.tensor(order), 3), whole[order])
    assert torch.equal(uniform(5, 2, torch.tensor(order[:4]), 3), whole[order[:4]])


def test_more_numbers_keep_the_first_ones() -> None:
    assert torch.equal(uniform(5, 2, torch.arange(9), 17)[:, :4], uniform(5, 2, torch.arange(9), 4))


@pytest.mark.parametrize("count", [1, 2, 9, 100])
def test_orders_are_fair(count: int) -> None:
    """Every picture comes first equally often, and an epoch does not repeat another."""
    orders = torch.stack([permutation(seed, 3, count) for seed in range(400)])
    assert torch.equal(orders.sort(1).values, torch.arange(count).expand(400, count))
    expected = 400 / count
    chi_square = (((orders[:, 0].bincount(minlength=count) - expected) ** 2) / expected).sum()
    assert chi_square <= (count - 1) + 5 * (2 * (count - 1)) ** 0.5
    if count > 2:
        epochs = {tuple(permutation(0, epoch, count).tolist()) for epoch in range(5)}
        assert len(epochs) > 1


def test_a_seed_gives_the_numbers_that_it_always_gave() -> None:
    """A run that goes on with a later version sees the pictures that it would have seen."""
    expected = [
        [0.06404834985733032, 0.7520833611488342],
        [0.016713321208953857, 0.7175288200378418],
    ]
    assert uniform(5, 3, torch.tensor([7, 8]), 2).tolist() == expected
