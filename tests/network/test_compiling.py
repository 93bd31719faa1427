"""Kernels for a GPU, compiled by processes beforehand; here without a GPU, for one that is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

KERNELS = """
import triton
import triton.language as tl

@triton.jit
def doubled(x, numbers, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(x + place, tl.load(x + place, mask=place < numbers) * 2, mask=place < numbers)

@triton.jit
def broken(x, numbers, BLOCK: tl.constexpr):
    tl.store(x + tl.arange(0, BLOCK), there_is_no_such_name)
"""
"""A module that the processes import by its name."""

PROGRAM = """
import json, os, subprocess, sys
from functools import partial
import torch, triton
from mobilenetv2.network.gpu import compile_worker, compiling
import few_kernels

class Driver(compile_worker.KnownTarget):
    get_current_stream = staticmethod(lambda device: 0)

options = json.loads(sys.argv[1])
os.chdir(options.get("folder", "."))
compiling.MOST_SECONDS = options.get("seconds", 300)
triton.runtime.driver.set_active(Driver("cuda", options.get("card", 90), 32))
torch.cuda.current_device, torch.cuda.set_device = lambda: 0, lambda device: None
compiling.available_cores = lambda: options.get("cores", 8)
compiling.free_memory = lambda: options.get("memory", 64) << 30
sys.executable = options.get("python", sys.executable)
started = []
popen = subprocess.Popen

def counted(command, **how):
    started.extend(word for word in command if compile_worker.__name__ in str(word))
    return popen(command, **how)

subprocess.Popen = counted
compiled = []
triton.knobs.compilation.listener = lambda *, src, cache_hit, **_: compiled.append(
    (src.name, cache_hit)
)
given = [("doubled", torch.bfloat16, 16), ("doubled", torch.bfloat16, 32), ("broken", None, 16),
         ("doubled", torch.float32, 16), ("doubled", torch.bfloat16, 48)]
compiling.compile_ahead([
    partial(getattr(few_kernels, name).warmup, dtype, numbers, grid=(1,), BLOCK=64)
    for name, dtype, numbers in given
])
print(json.dumps([len(started), sorted(compiled)]))
"""


@pytest.fixture
def ahead(tmp_path: Path):
    """Compiles ahead in a process of its own: processes started, and kernels with cache hits."""
    (tmp_path / "few_kernels.py").write_text(KERNELS)

    def run(**options: object) -> tuple[int, list[list[object]]]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
            ),
            "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(options)],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


BOTH = [["doubled", True], ["doubled", True]]  # of bfloat16 and of float32


def test_processes_compile_what_is_launched(ahead) -> None:
    """And leave to the launch what cannot be; the next training finds all of it."""
    assert ahead() == [3, BOTH]  # a process for each kernel, as there are cores for more
    assert ahead() == [0, BOTH]
    assert ahead(card=86) == [3, BOTH]  # another GPU needs others


@pytest.mark.parametrize(
    "options",
    [{"cores": 2}, {"memory": 1}, {"python": "/bin/true"}, {"python": "/no/such/program"}],
    ids=["few cores", "little memory", "processes that end", "none can be started"],
)
def test_threads_compile_what_processes_do_not(ahead, options, tmp_path) -> None:
    started, compiled = ahead(**options)
    assert (started > 0) == ("python" in options)
    assert compiled == [["doubled", False], ["doubled", False]]
    assert not list((tmp_path / "cache").glob("mobilenetv2-*"))  # the next one tries again


def test_processes_that_compile_nothing_or_hang_are_no_success(ahead, tmp_path) -> None:
    """As with another Triton, whose kernels cannot be handed over, or a compiler that waits."""
    no_way = "\ndoubled.preload = broken.preload = None\n"
    (tmp_path / "few_kernels.py").write_text(KERNELS + no_way)
    assert ahead() == [3, [["doubled", False], ["doubled", False]]]
    assert ahead()[0] == 3
    (tmp_path / "few_kernels.py").write_text(
        f"{KERNELS}\nimport sys, time\nif 'torch' not in sys.modules: time.sleep(600)\n"
    )
    assert ahead(seconds=3) == [3, [["doubled", True], ["doubled", True]]]


def test_no_file_of_the_folder_one_is_in_is_run(ahead, tmp_path) -> None:
    (tmp_path / "here").mkdir()
    for name in ("json", "signal", "triton", "mobilenetv2"):
        (tmp_path / "here" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert ahead(folder=str(tmp_path / "here")) == [3, BOTH]
    assert not (tmp_path / "ran").exists()
