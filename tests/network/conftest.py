"""What tests of the network's fast operations need."""

from collections.abc import Iterator

import pytest
import torch

from mobilenetv2.network.fast_ops import FastOps, choose


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> Iterator[None]:
    """Enough for small pictures, and quick on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cpp(compiler: None) -> FastOps:
    chosen = choose(torch.device("cpu"), "cpp")
    assert chosen.kind == "cpp", chosen.reason
    return chosen
