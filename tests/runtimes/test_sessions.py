"""What a session of another library leaves behind."""

import subprocess
import sys
from pathlib import Path

import pytest

from mobilenetv2.classifier import Classifier
from mobilenetv2.runtimes.onnx_network import network_model

# The signal is raised in another process, because it would end this one.
SIGNAL_AFTER_SESSIONS = """
import gc, signal, sys
from pathlib import Path
from mobilenetv2.runtimes.sessions import openvino_session

sessions = [openvino_session(Path(sys.argv[1])) for _ in range(2)]
while sessions:
    del sessions[0]  # the oldest first
    gc.collect()
signal.signal(signal.SIGINT, lambda *_: print("heard"))
signal.raise_signal(signal.SIGINT)
"""

CORES_OF_THREADS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from mobilenetv2.runtimes.sessions import openvino_core

together = threading.Barrier(8)

def core(_):
    together.wait()
    return openvino_core()

print(len({id(one) for one in list(ThreadPoolExecutor(8).map(core, range(8)))}))
"""


def test_threads_share_the_only_core() -> None:
    """Also where the first calls come together, before OpenVINO was imported."""
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", CORES_OF_THREADS], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_a_signal_is_heard_after_openvino(small_classifier: Classifier, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    path = tmp_path / "network.onnx"
    path.write_bytes(network_model(small_classifier, normalise=True).SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_SESSIONS, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
