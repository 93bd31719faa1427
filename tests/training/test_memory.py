import dataclasses
import gc
import multiprocessing
import weakref
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import mobilenetv2
from mobilenetv2.data.augment import Batch
from mobilenetv2.errors import ConfigError
from mobilenetv2.training import memory
from mobilenetv2.training.gradients import Gradients
from mobilenetv2.training.memory import (
    check_memory,
    largest_that_fits,
    too_little_memory,
)
from mobilenetv2.training.start import start
from mobilenetv2.training.train import train

GIB = 1 << 30


def begun(batch_size: int):
    return start(mobilenetv2.configure(data="digits", width=1.0, batch_size=batch_size))


def test_enough_memory_is_not_measured(monkeypatch):
    monkeypatch.setattr(memory, "_peak", lambda: pytest.fail("nothing had to be measured"))
    check_memory(begun(64))


def test_a_batch_that_cannot_fit_is_refused_and_one_that_does_is_named(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: GIB // 4)
    state = torch.get_rng_state()
    run = begun(1000)
    before = {name: value.clone() for name, value in run.classifier.network.state_dict().items()}
    with pytest.raises(ConfigError, match=r"--batch-size 1000: .* fits") as refusal:
        check_memory(run)
    after = run.classifier.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(state, torch.get_rng_state())
    fits = int(str(refusal.value).split(" fits")[0].split()[-1])
    assert 50 < fits < 1000
    # Measured anew, which is not the same to the last byte.
    smaller = run.config.model_copy(update={"batch_size": int(0.9 * fits)})
    check_memory(dataclasses.replace(run, config=smaller))


def said_and_taken(count: int) -> tuple[float, int]:
    """Bytes that so many pictures are said to need in a step, and those that it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "free_memory", lambda: 1)
        with pytest.raises(ConfigError, match="GiB") as refusal:
            check_memory(begun(count))
    said = float(str(refusal.value).split("take ")[1].split(" GiB")[0]) * GIB
    memory._give_back()
    before = memory._peak()
    return said, memory._peak_of_step(begun(count), count) - before


@pytest.mark.slow
def test_what_is_said_to_be_needed_is_what_a_step_takes():
    """In a process of its own: what other tests have left lying about would be taken again."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        said, taken = alone.submit(said_and_taken, 1500).result()
    assert 0.75 * taken < said < 1.33 * taken


def test_garbage_that_lies_about_does_not_hide_what_a_step_takes(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1)
    steps = []
    peak_of_step = memory._peak_of_step

    def collecting(run, count):
        gc.collect()  # as may happen by itself
        steps.append(peak_of_step(run, count))
        return steps[-1]

    monkeypatch.setattr(memory, "_peak_of_step", collecting)
    run = begun(500)
    gc.disable()
    try:
        for _ in range(8):
            ring = [torch.ones(4_000_000)]
            ring.append(ring)
        del ring
        with pytest.raises(ConfigError, match="GiB") as refusal:
            check_memory(run)
    finally:
        gc.enable()
    assert len(steps) == 2
    assert float(str(refusal.value).split("take ")[1].split(" GiB")[0]) > 0.2


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_half_after_half_until_one_fits(error):
    tried = []

    def step(batch: Batch) -> None:
        tried.append(len(batch.pictures))
        if len(batch.pictures) > 30:
            raise error

    batch = Batch(torch.zeros(200, 1, 2, 2), torch.zeros(200), torch.zeros(200), 0.5)
    assert largest_that_fits(batch, step) == 25
    assert tried == [100, 50, 25]
    error = too_little_memory("CUDA out of memory", 256, torch.device("cuda", 1), 25)
    assert "--batch-size 256: cuda:1" in str(error)
    assert "25 fits" in str(error)


def test_where_nothing_fits_the_device_says_why():
    def step(_: Batch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_that_fits(Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4)), step) is None
    error = too_little_memory("CUDA out of memory", 4, torch.device("cuda", 0))
    assert "take fewer, or smaller pictures (CUDA out of memory)" in str(error)


def test_another_fault_is_no_lack_of_memory():
    def step(_: Batch) -> None:
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match="no kernel image"):
        largest_that_fits(Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4)), step)


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_a_run_names_the_batch_that_fits_once_the_failed_step_is_forgotten(
    quick_settings, tmp_path, monkeypatch, error
):
    """A step that failed would hold its memory, were the error still being handled."""
    held = []

    class Activations:
        pass

    def of(self, batch):
        assert all(activations() is None for activations in held)
        activations = Activations()
        held.append(weakref.ref(activations))
        if len(batch.labels) > 2:
            raise type(error)(*error.args)

    monkeypatch.setattr(Gradients, "of", of)
    with pytest.raises(ConfigError, match=r"--batch-size 6: cpu .* 1 fits"):
        train(quick_settings(tmp_path / "run"))
    assert len(held) == 3  # six pictures, three, one


def test_another_fault_of_a_step_comes_through(quick_settings, tmp_path, monkeypatch):
    def of(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(Gradients, "of", of)
    with pytest.raises(RuntimeError, match="no kernel image"):
        train(quick_settings(tmp_path / "run"))


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_find_lr_names_the_batch(quick_settings, tmp_path, monkeypatch, error):
    def too_much(*_):
        raise error

    monkeypatch.setattr("mobilenetv2.training.find_lr.batch_loss", too_much)
    with pytest.raises(ConfigError, match=r"--batch-size 6: cpu has too little memory"):
        train(quick_settings(tmp_path / "run", lr="auto"))
