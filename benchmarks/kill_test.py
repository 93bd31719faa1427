"""Kill runs at random instants, let them go on, and compare their ends with one never killed.

Each trial trains a small classifier through the command line, kills the process with SIGKILL at a
random instant (before the first step, within steps, while saving, validating or drawing), goes on
with ``--resume``, perhaps to be killed again, and compares at the end: weights, optimizer, moving
average and random state of both checkpoints, the delivered model, every event and every figure but
those of time. They must be the same bits.

With ``--signal TERM`` the process is asked to stop instead: it has to save the very step that it
was at, and to end with exit code 143; the time that this takes is printed.

    python benchmarks/kill_test.py                       # 200 kills
    python benchmarks/kill_test.py --kills 100 --signal TERM
    python benchmarks/kill_test.py --kills 20 --seed 7
    python benchmarks/kill_test.py --only 17             # a trial that failed, again
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure  # noqa: F401  (what children need is loaded once, before they are forked)
import numpy as np
import sklearn.datasets  # noqa: F401
import torch
from PIL import Image
from safetensors import safe_open

from machine import headline, run_main
from mobilenetv2.cli import main as command_line
from mobilenetv2.training import train  # noqa: F401
from mobilenetv2.training.checkpoints import Checkpoint

MOST_KILLS = 3  # of one trial
TICK = 0.002  # seconds
TIMES = {"seconds", "training_seconds", "images_per_second", "data", "run"}

COMMON = (
    "--width", "0.1", "--epochs", "2", "--ema", "0.9", "--checkpoint-every", "2steps",
    "--mixup", "0.3", "--cutmix", "0.3", "--shift", "0.1", "--device", "cpu",
)  # fmt: skip
CASES = {
    "digits": ("digits", "--batch-size", "256", *COMMON),
    "digits, AdamW, PyTorch's operations": (
        "digits", "--batch-size", "400", "--optimizer", "adamw", "--lr", "0.003",
        "--fast-ops", "off", *COMMON,
    ),
    "folder": ("FOLDER", "--batch-size", "16", "--flip", "--erase", "0.3", *COMMON),
}  # fmt: skip


def write_folder(folder: Path) -> None:
    """Two classes of small colour pictures with some structure."""
    draw = np.random.default_rng(0)
    for label, tint in (("warm", (255, 120, 60)), ("cold", (60, 120, 255))):
        (folder / label).mkdir(parents=True)
        for number in range(40):
            grey = draw.integers(0, 256, (6, 6), dtype=np.uint8)
            picture = Image.fromarray(grey).resize((24, 24), Image.Resampling.BICUBIC)
            pixels = np.asarray(picture)[..., None] / 255 * np.array(tint)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{number}.png")


def start(arguments: tuple[str, ...], log: Path) -> int:
    """A child process at work; everything is loaded already, so it begins at once."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        command_line(["train", *arguments])
    except SystemExit as ended:
        os._exit(int(ended.code or 0))
    finally:
        os._exit(70)


def ended_by_itself(child: int, seconds: float) -> bool:
    """Wait for a child for so long; whether it came to its end.

    Raises:
        RuntimeError: it had failed.
    """
    while seconds > 0:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a run failed with status {status}")
            return True
        started = time.monotonic()
        time.sleep(min(TICK, seconds))
        # Where the clock went on for much longer, all of this was paused, the child too.
        seconds -= min(time.monotonic() - started, 10 * TICK)
    return False


def finish(child: int) -> None:
    """Wait for a child that nobody disturbs.

    Raises:
        RuntimeError: it failed, or hangs.
    """
    if not ended_by_itself(child, 600):
        os.kill(child, signal.SIGKILL)
        raise RuntimeError("a run did not come to its end")


def kill(child: int, run: Path) -> float:
    """SIGKILL; the seconds until the child was gone."""
    started = time.monotonic()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic() - started


def ask_to_stop(child: int, run: Path) -> float:
    """SIGTERM; the seconds until the child was gone.

    Raises:
        RuntimeError: it did not end with 143, or did not save the step that it was at.
    """
    started = time.monotonic()
    os.kill(child, signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    took = time.monotonic() - started
    if os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0:
        return took  # it had not begun with the run yet, or was done with it
    if os.waitstatus_to_exitcode(status) != 143:
        raise RuntimeError(f"SIGTERM ended a run with status {status}")
    if not (run / "metrics.jsonl").exists():
        return took  # stopped while it loaded pictures, in words, before it had a folder
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = max((event["step"] for event in events if event["event"] == "step"), default=0)
    last = run / "last.pth.tar"
    saved = Checkpoint.load(last).history["steps"] if last.exists() else 0
    if saved != told:
        raise RuntimeError(f"SIGTERM after step {told}, of which {saved} were saved")
    return took


ENDS = {"KILL": kill, "TERM": ask_to_stop}


def begin_or_go_on(run: Path, case: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments that a user would give now."""
    config = run / "config.yaml"
    if config.exists() and config.stat().st_size:
        return ("--resume", str(run))
    return (*case, "--out", str(run))


def fingerprint(run: Path) -> dict[str, str]:
    """Digests of all that a run leaves behind, but for the times."""
    digests = {}
    for name in ("last", "best"):
        checkpoint = vars(Checkpoint.load(run / f"{name}.pth.tar"))
        del checkpoint["settings"], checkpoint["classifier"]
        digests[f"{name}.pth.tar"] = digest(checkpoint)
    with safe_open(run / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in sorted(file.keys())}
    digests["model.safetensors"] = digest(weights)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    digests["metrics.jsonl"] = digest([json.loads(line) for line in lines])
    digests["result.json"] = digest(json.loads((run / "result.json").read_text()))
    leftovers = [path.name for path in run.iterdir() if path.name.startswith(".")]
    digests["hidden files"] = digest(leftovers)
    return digests


def digest(value: Any) -> str:
    """SHA-256 of nested values and tensors, but for the times."""
    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(str((part.dtype, part.shape)).encode() + part.numpy().tobytes())
        elif isinstance(part, dict):
            for key in part.keys() - TIMES:
                assert isinstance(key, str | int)
            for key in sorted(part.keys() - TIMES, key=str):
                found.update(repr(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            found.update(f"[{len(part)}".encode())
            for item in part:
                add(item)
        else:
            found.update(repr(part).encode())

    add(value)
    return found.hexdigest()


def trial(
    number: int,
    case: tuple[str, ...],
    length: float,
    run: Path,
    log: Path,
    end: Callable[[int, Path], float],
) -> list[float]:
    """One run that is ended up to ``MOST_KILLS`` times; how long each of these ends took."""
    draw = random.Random(number)
    ends: list[float] = []
    for _ in range(draw.randint(1, MOST_KILLS)):
        child = start(begin_or_go_on(run, case), log)
        if ended_by_itself(child, draw.uniform(0, length)):
            return ends
        ends.append(end(child, run))
        if (run / "result.json").exists():
            return ends
    finish(start(begin_or_go_on(run, case), log))
    return ends


def main() -> None:
    """Run the trials, and print the count and the numbers of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--signal", choices=list(ENDS), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="number of the first trial")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after so long")
    parser.add_argument("--case", choices=list(CASES), help="this kind of run alone")
    parser.add_argument("--only", type=int, help="one trial, by its number")
    options = parser.parse_args()

    work = Path(tempfile.mkdtemp(prefix="kill-test-"))
    write_folder(work / "FOLDER")
    cases = {
        name: tuple(str(work / word) if word == "FOLDER" else word for word in case)
        for name, case in CASES.items()
        if options.case in (None, name)
    }
    expected, lengths = {}, {}
    for name, case in cases.items():
        for again in range(2):  # the first one compiles, and warms what the system keeps in memory
            run = work / f"never killed {again}"
            started = time.monotonic()
            finish(start((*case, "--out", str(run)), work / "log"))
            lengths[name] = time.monotonic() - started
            if again and fingerprint(run) != expected[name]:
                sys.exit(f"{name}: two runs that nobody killed differ")
            expected[name] = fingerprint(run)
        for again in range(2):
            shutil.rmtree(work / f"never killed {again}")
        print(f"{name}: {lengths[name]:.1f} s undisturbed", flush=True)

    ends: list[float] = []
    trials = 0
    failures: dict[int, str] = {}
    deadline = time.monotonic() + 60 * options.minutes
    while (len(ends) < options.kills if options.only is None else not trials) and (
        time.monotonic() < deadline
    ):
        number = options.seed + trials if options.only is None else options.only
        name = list(cases)[number % len(cases)]
        run, log = work / f"trial {number}", work / f"log {number}"
        try:
            ends += trial(number, cases[name], lengths[name], run, log, ENDS[options.signal])
            found = fingerprint(run)
            differ = [part for part in found if found[part] != expected[name][part]]
            if differ:
                failures[number] = f"{name}: {', '.join(differ)} differ"
        except Exception as error:
            failures[number] = f"{name}: {error}"
        trials += 1
        if trials % 10 == 0:
            print(f"{len(ends)} ends in {trials} runs, {len(failures)} bad", flush=True)
        if number not in failures:
            shutil.rmtree(run)
            log.unlink()
    print(
        f"{len(ends)} times SIG{options.signal} in {trials} runs, "
        f"{trials - len(failures)} of {trials} ended identically; "
        f"the slowest was gone after {max(ends, default=0):.2f} s"
    )
    print(headline())
    for number, words in failures.items():
        print(f"trial {number}: {words}; see {work / f'trial {number}'} and its log")
    if failures:
        sys.exit(1)
    shutil.rmtree(work)


if __name__ == "__main__":
    run_main(main)
