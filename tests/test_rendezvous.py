"""Processes that meet again do not meet the dead."""

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from torch.distributed import HashStore, PrefixStore

from mobilenetv2.rendezvous import fresh_store


def meet(store: HashStore, delays: list[float]) -> list[PrefixStore]:
    """What each process gets; each comes after its own delay in seconds."""

    def arrive(rank: int) -> PrefixStore:
        sleep(delays[rank])
        return fresh_store(store, rank, len(delays), patience=20)

    with ThreadPoolExecutor(len(delays)) as pool:
        return list(pool.map(arrive, range(len(delays))))


@pytest.mark.parametrize("delays", [[0.0, 0.0, 0.0], [0.3, 0.0, 0.1], [0.0, 0.3, 0.2]])
def test_whoever_comes_first_nobody_sees_an_earlier_start(delays: list[float]) -> None:
    store = HashStore()
    for start in range(3):
        stores = meet(store, delays)
        assert not any(one.check(["address"]) for one in stores)
        stores[0].set("address", str(start))
        assert [one.get("address") for one in stores] == [str(start).encode()] * len(delays)


def test_a_process_that_died_while_it_was_meeting_is_not_counted() -> None:
    store = HashStore()
    with pytest.raises(RuntimeError, match="not all of 3 processes came within"):
        fresh_store(store, 0, 3, patience=0.1)
    with pytest.raises(RuntimeError, match="not all"):
        fresh_store(store, 1, 3, patience=0.1)
    stores = meet(store, [0.2, 0.0, 0.1])
    stores[2].set("here", "now")
    assert [one.get("here") for one in stores] == [b"now"] * 3
