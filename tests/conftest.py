"""What many tests need: data from outside, and small things to train on."""

import os

# As the command line does on a busy machine; read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, threads of each would share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from mobilenetv2.classifier import Classifier
from mobilenetv2.cli import main
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.network import native


@pytest.fixture(scope="session")
def test_data() -> Path:
    folder = os.environ.get("MOBILENETV2_TEST_DATA")
    if not folder:
        pytest.skip("MOBILENETV2_TEST_DATA names no folder with real data")
    return Path(folder)


@pytest.fixture(scope="session")
def compiler() -> None:
    """For tests of compiled kernels: with GCC these must come, or the test fails."""
    try:
        command = native._compiler()
        if "clang" in native._run([*command, "--version"]):
            pytest.skip(f"{command[0]} is Clang, which the kernels refuse")
    except native.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))  # more would only make small pictures slower
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, only this computer answers: nothing waits for what lies elsewhere."""
    opened = urllib.request.urlopen

    def here_only(url: Any, *arguments: Any, **options: Any) -> Any:
        if urlsplit(getattr(url, "full_url", url)).hostname not in ("127.0.0.1", "localhost", None):
            raise URLError("no network")
        return opened(url, *arguments, **options)

    monkeypatch.setattr(urllib.request, "urlopen", here_only)


@pytest.fixture
def heard_interrupts() -> Iterator[None]:
    """A shell starts what runs in the background deaf to SIGINT, which its children inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this test, in this process, draw nothing: that takes longer than they do."""
    for name in ("first_batch", "confusion", "mistakes", "save"):
        monkeypatch.setattr(f"mobilenetv2.evaluation.plots.{name}", lambda *_: None)
    monkeypatch.setattr("mobilenetv2.evaluation.curves.training", lambda *_: None)


@pytest.fixture(autouse=True)
def runtime_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this machine's fastest runtime is must not decide about tests."""
    folder = tmp_path.with_name(f"{tmp_path.name}-notes")  # a test may train on tmp_path itself
    monkeypatch.setattr("mobilenetv2.data.known_folders.cache_folder", lambda: folder)
    for module in ("copies", "memory"):  # not the variable: compiled operations stay where they are
        monkeypatch.setattr(f"mobilenetv2.runtimes.{module}.cache_folder", lambda: folder)
    return folder / "runtimes.json"


@pytest.fixture
def small_classifier() -> Classifier:
    """Three labels, grey 16×16, random weights with lived-in batch norms."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(
        colour="grey", height=16, width=16, resize=16, mean=(0.4,), std=(0.3,)
    )
    labels = ("ant", "bee", "Käfer")
    classifier = Classifier.create(NetworkConfig(width=0.1), preprocessing, labels)
    for module in classifier.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return classifier


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a folder of random pictures, one brightness per class."""

    def write(
        classes: tuple[str, ...] = ("dark", "light"),
        count: int = 12,
        size: tuple[int, int] = (20, 20),
        mode: str = "RGB",
        name: str = "pictures",
    ) -> Path:
        random = np.random.default_rng(len(name))
        for place, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for number in range(count):
                low = 20 + 170 * place // max(1, len(classes) - 1)
                pixels = random.integers(low, low + 60, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / f"{number}.png")
        return tmp_path / name

    return write


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return run
