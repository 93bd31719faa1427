"""The long trials of `benchmarks/`, in their quick form."""

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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_bent_files_load_or_are_refused() -> None:
    assert ", 0 treated badly" in run("fuzz_files.py", "--cases", 100)
