"""Files of strangers, as the commands take them."""

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
CORPUS = Path(__file__).parent / "corpus.tar.xz"
FUZZER = Path(__file__).parents[1] / "benchmarks" / "fuzz_files.py"


def onnx_with_data_elsewhere(path: Path, elsewhere: str) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    weight = kind(name="w", data_type=kind.FLOAT, dims=[4], data_location=kind.EXTERNAL)
    weight.external_data.add(key="location", value=elsewhere)
    shape = helper.make_tensor_value_info("x", kind.FLOAT, [4])
    output = helper.make_tensor_value_info("y", kind.FLOAT, [4])
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [shape], [output], [weight]
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize(
    "words", [("evaluate", "", "digits"), ("predict", "", "PICTURE"), ("inspect", ""),
              ("export", ""), ("benchmark", ""), ("demo", "")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_an_onnx_file_that_points_elsewhere_is_refused_unread(
    run_cli: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    secret = tmp_path / "secret"
    if hasattr(os, "mkfifo"):
        os.mkfifo(secret)  # who opens it waits forever
    model = tmp_path / "stranger.onnx"
    onnx_with_data_elsewhere(model, "secret")
    picture = Path(__file__).parents[1] / "docs" / "pictures" / "digits-curves.png"
    assert picture.exists()
    given = {"": model, "PICTURE": picture}
    code, out, error = run_cli(*(given.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert f"{model}: an exported file is for other programs" in error.replace("\n", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_what_long_fuzzing_has_kept(tmp_path: Path) -> None:
    """A file for each different answer, and whatever was treated badly once."""
    with tarfile.open(CORPUS) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
        archive.extractall(tmp_path, **safely)
    assert (tmp_path / "model-209994").exists()  # a shape that PyTorch cannot count to
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(FUZZER), "--replay", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cases, answers = map(int, re.findall(r"(\d+) (?:cases|different)", done.stdout))
    assert ", 0 treated badly" in done.stdout
    assert answers > cases / 2  # no wall that all of them meet first, such as the seal
