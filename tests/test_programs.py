"""The long trials of `benchmarks/`, in their quick form."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / program), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_killed_runs_end_as_if_nothing_had_happened() -> None:
    assert "ended identically" in run("kill_test.py", "--kills", 4, "--case", "folder")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_runs_that_are_asked_to_stop_have_saved_the_very_step() -> None:
    said = run("kill_test.py", "--kills", 3, "--case", "folder", "--signal", "TERM")
    assert "times SIGTERM" in said
    assert "ended identically" in said


def has_namespaces() -> bool:
    if shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "mobilenetv2-try"], capture_output=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "del", "mobilenetv2-try"], check=True)
    return made.returncode == 0


@pytest.mark.slow
def test_two_machines_of_which_one_dies() -> None:
    if not has_namespaces():
        pytest.skip("needs Linux, iproute2 and the root user")
    words = ("digits", "--epochs", 1, "--width", 0.1, "--batch-size", 128)
    assert "the same figures and weights" in run("two_machines.py", *words)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_bent_files_load_or_are_refused() -> None:
    assert ", 0 treated badly" in run("fuzz_files.py", "--cases", 100)
