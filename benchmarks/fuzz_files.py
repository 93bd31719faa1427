"""Load models and checkpoints that a stranger might send: bent, cut, lying and malicious ones.

Starts from a good model and a good checkpoint, damages each case in a random way (bytes, JSON
headers, pickled values, zip records; sealed again, so that the digest does not catch it first), and
loads it. Every case must either load or be refused in words, within a second, without a crash and
without memory beyond twice the file and a fixed allowance. Cases run in child processes, so that a
crash is counted and its case named.

    python benchmarks/fuzz_files.py                    # 20,000 cases
    python benchmarks/fuzz_files.py --cases 1000000 --kind model
    python benchmarks/fuzz_files.py --only 4711        # a case that failed, again
"""

import argparse
import io
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from machine import headline
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.errors import ModelFileError
from mobilenetv2.seals import seal_zip
from mobilenetv2.training.checkpoints import FORMAT, VERSION, Checkpoint, to_archive

ALLOWANCE = 256 << 20  # bytes of address space for everything but the file
LONGEST = 1.0  # seconds
CASES_PER_CHILD = 500

ODD_NUMBERS = (0, 1, -1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**64, 10**30, 0.5, 1e308)
ODD_VALUES: tuple[Any, ...] = (None, True, "", "x" * 999, [], {}, [[[]]], *ODD_NUMBERS)


def good_files() -> tuple[bytes, dict[str, Any]]:
    """A model file and the contents of a checkpoint, small ones."""
    torch.manual_seed(0)
    wanted = Preprocessing(colour="grey", height=8, width=8, resize=8, mean=(0.5,), std=(0.5,))
    classifier = Classifier.create(NetworkConfig(width=0.05), wanted, ("a", "b"))
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(Path(folder) / "model")
        model = (Path(folder) / "model").read_bytes()
    network = classifier.network
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    contents = {
        "format": f"{FORMAT} {VERSION}", "settings": {}, "labels_digest": "",
        "classifier": classifier.metadata(), "weights": network.state_dict(), "averaged": None,
        "optimizer": optimizer.state_dict(), "schedule": {}, "epoch": 1, "step": 0,
        "random_state": torch.get_rng_state(), "cuda_random_state": None, "lr": 0.1, "history": {},
    }  # fmt: skip
    return model, contents


# ------------------------------------------------------------------------ damages


def bend_bytes(draw: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert."""
    bent = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(bent) + 1)
        match draw.randrange(5):
            case 0 if place < len(bent):
                bent[place] ^= 1 << draw.randrange(8)
            case 1:
                del bent[place : place + draw.choice((1, 4, 100, 10**6))]
            case 2:
                bent[place:place] = bent[place : place + draw.choice((1, 8, 64))]
            case 3:
                bent[place:place] = draw.randbytes(draw.choice((1, 4, 8)))
            case _ if place < len(bent):
                bent[place] = draw.choice((0, 1, 127, 128, 255))
    return bytes(bent)


def bend_value(draw: random.Random, value: Any) -> Any:
    """One odd value somewhere in nested lists and dictionaries."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        changed = {**value, key: bend_value(draw, value[key])}
        if draw.random() < 0.1:
            del changed[key]
        if draw.random() < 0.1:
            changed[draw.choice(("", "x", "__class__", "weights"))] = draw.choice(ODD_VALUES)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.9:
        changed = list(value)
        place = draw.randrange(len(changed))
        changed[place] = bend_value(draw, changed[place])
        return changed * draw.choice((1, 1, 1, 2, 100))
    if isinstance(value, torch.Tensor) and draw.random() < 0.9:
        return bend_tensor(draw, value)
    return draw.choice(ODD_VALUES)


def bend_tensor(draw: random.Random, value: torch.Tensor) -> Any:
    """Another shape, dtype or layout."""
    match draw.randrange(7):
        case 0:
            return value.new_zeros(()).expand(draw.choice((1, 10**6, 10**9)), 1000)
        case 1:
            return value.reshape(-1)[:0]
        case 2:
            return value.to(draw.choice((torch.float16, torch.int8, torch.bool, torch.complex64)))
        case 3:
            return torch.empty(draw.choice(((10**6, 10**6), (0,))), device="meta")
        case 4:
            return value.flatten().to_sparse()
        case 5:
            return torch.full_like(value, float("nan")) if value.is_floating_point() else value - 1
        case _:
            return value.t() if value.ndim == 2 else value[None]


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


def bent_model(draw: random.Random, model: bytes) -> bytes:
    """A damaged safetensors file."""
    size = int.from_bytes(model[:8], "little")
    header = json.loads(model[8 : 8 + size])
    header["__metadata__"].pop("sha256")
    match draw.randrange(5):
        case 0:
            header = bend_value(draw, header)
        case 1:  # inside the description of the classifier
            about = json.loads(header["__metadata__"]["mobilenetv2"])
            for _ in range(draw.choice((1, 1, 3))):
                about = bend_value(draw, about)
            header["__metadata__"]["mobilenetv2"] = json.dumps(about)
        case 2:
            text = "[" * draw.choice((10, 10**4, 10**6))
            header["__metadata__"]["mobilenetv2"] = text
        case 3:
            return bend_bytes(draw, model[:8] + json.dumps(header).encode()) + model[8 + size :]
        case _:
            length = draw.choice((0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1))
            return length.to_bytes(8, "little") + model[8:]
    text_ = json.dumps(header).encode()
    return len(text_).to_bytes(8, "little") + text_ + model[8 + size :]


def bent_checkpoint(draw: random.Random, contents: dict[str, Any]) -> bytes:
    """A damaged checkpoint, sealed."""
    match draw.randrange(5):
        case 0 | 1:
            return bytes(to_archive(bend_value(draw, contents)))
        case 2:
            call: Call = draw.choice(
                (Call(os.system, "true"), Call(bytearray, 10**10), Call(eval, "1"),
                 Call(set, [1]), Call(torch.zeros, 10**10), Call(print, "x"), Call(complex, 1, 2))
            )  # fmt: skip
            return bytes(to_archive({**contents, draw.choice(list(contents)): call}))
        case _:
            return rezipped(draw, bytes(to_archive(contents)))


def rezipped(draw: random.Random, archive: bytes) -> bytes:
    """The same records with one of them bent, packed again, perhaps as a bomb."""
    output = io.BytesIO()
    method = draw.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED,))
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as source,
        zipfile.ZipFile(output, "w", method) as zip_,
    ):
        names = source.namelist()
        pickled = next(name for name in names if name.endswith("data.pkl"))
        bent = draw.choice((pickled, pickled, *names))
        for name in names:
            data = source.read(name)
            if name == bent:
                match draw.randrange(4):
                    case 0:
                        data = bytes(draw.choice((0, 10**7)))
                    case 1 if name == pickled:
                        data = pickle.dumps(
                            draw.choice(ODD_VALUES), protocol=draw.choice((0, 2, 4))
                        )
                    case 2:
                        data = data[: len(data) // 2]
                    case _:
                        data = bend_bytes(draw, data)
            zip_.writestr(name, data)
    packed = bytearray(output.getvalue())
    if draw.random() < 0.3:
        directory = packed.rfind(b"PK\1\2")
        packed[directory : len(packed) - 22] = bend_bytes(draw, bytes(packed[directory:-22]))
    seal_zip(packed)
    return bytes(packed)


# -------------------------------------------------------------------------- running


def run_case(
    number: int, model: bytes, contents: dict[str, Any], folder: Path, kind: str = "both"
) -> str | None:
    """What is wrong with how a case was treated; None if nothing."""
    draw = random.Random(number)
    path = folder / "file"
    load: Callable[[Path], Any] = Classifier.load
    if kind == "checkpoint" or (kind == "both" and number % 2):
        load = load_checkpoint
        path.write_bytes(bent_checkpoint(draw, contents))
    else:
        path.write_bytes(bent_model(draw, model))
    started = time.perf_counter()
    try:
        load(path)
    except ModelFileError:
        pass
    except BaseException as error:
        return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
    took = time.perf_counter() - started
    return f"took {took:.1f} s" if took > LONGEST else None


def load_checkpoint(path: Path) -> Classifier:
    """As ``mobilenetv2 evaluate FILE`` does."""
    return Checkpoint.load(path).build_classifier(str(path))


def run_child(
    numbers: range, good: tuple[bytes, dict[str, Any]], folder: Path, kind: str
) -> dict[int, str]:
    """Cases in a process of their own; what was wrong with some."""
    report = folder / "report"
    report.write_text("")
    child = os.fork()
    if not child:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + ALLOWANCE + 2 * len(good[0])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with report.open("a") as file:
            for number in numbers:
                file.write(json.dumps([number, "killed"]) + "\n")
                file.flush()
                wrong = run_case(number, *good, folder, kind)
                file.write(json.dumps([number, wrong]) + "\n")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found = dict(json.loads(line) for line in report.read_text().splitlines())
    last = max(found, default=numbers.start)
    failures = {number: words for number, words in found.items() if words}
    if status:
        failures[last] = f"the process died with status {status}"
        if last + 1 < numbers.stop:
            failures |= run_child(range(last + 1, numbers.stop), good, folder, kind)
    return failures


def main() -> None:
    """Run the cases; print how many, and those that were treated badly."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=("both", "model", "checkpoint"), default="both")
    parser.add_argument("--only", type=int, help="one case, by its number, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    good = good_files()
    failures: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only is not None:
            print(run_case(options.only, *good, folder, options.kind))
            return
        started = time.monotonic()
        end = options.seed + options.cases
        for first in range(options.seed, end, CASES_PER_CHILD):
            numbers = range(first, min(first + CASES_PER_CHILD, end))
            failures |= run_child(numbers, good, folder, options.kind)
    took = time.monotonic() - started
    print(f"{options.cases:,} cases in {took:.0f} s, {len(failures)} treated badly; {headline()}")
    for number, words in list(failures.items())[:20]:
        print(f"case {number}: {words}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
