"""Two machines train together, one process is killed and comes back: the end must be the same.

The machines are network namespaces with addresses of their own, joined by a virtual cable; this
needs Linux and root. Arguments go to ``mobilenetv2 train``.

    python benchmarks/two_machines.py digits --epochs 2 --width 0.1
    python benchmarks/two_machines.py mnist --data-dir FOLDER --epochs 1 --batch-size 512
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from machine import headline, run_main
from mobilenetv2.training.checkpoints import Checkpoint

NAMES = ("mobilenetv2-a", "mobilenetv2-b")
CABLES = ("mnv2-a", "mnv2-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
FIGURES = ("steps", "best_epoch", "train_accuracy", "val_accuracy", "val_loss", "test_accuracy")


def ip(*words: str) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=True)


def connect(stack: ExitStack) -> None:
    """Two namespaces and the cable between them, until the stack is left."""
    for name in NAMES:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
    ip("link", "add", CABLES[0], "type", "veth", "peer", "name", CABLES[1])
    for name, cable, address in zip(NAMES, CABLES, ADDRESSES, strict=True):
        ip("link", "set", cable, "netns", name)
        for words in (
            ("addr", "add", f"{address}/24", "dev", cable),
            ("link", "set", cable, "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", name, *words)


def start(place: int, run: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """``torchrun`` on one of the machines."""
    program = [
        "ip", "netns", "exec", NAMES[place], sys.executable, "-m", "torch.distributed.run",
        "--nnodes=2", "--nproc-per-node=1", f"--rdzv-id={run.name}", "--rdzv-backend=c10d",
        f"--rdzv-endpoint={ADDRESSES[0]}:29400", f"--local-addr={ADDRESSES[place]}",
        # Both have the name of the computer that they share, so they have to be told who is first.
        f"--rdzv-conf=is_host={not place}",
        "--max-restarts=3", "-m", "mobilenetv2", "train", *arguments, "--out", str(run),
        "--checkpoint-every", "5steps",
    ]  # fmt: skip
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": CABLES[place]}
    with (run.parent / f"{run.name}-{place}.log").open("wb") as log:
        return subprocess.Popen(program, stdout=log, stderr=log, env=environment)


def worker_of(agent: int) -> int | None:
    """The training process below a ``torchrun``."""
    children = Path(f"/proc/{agent}/task/{agent}/children")
    for child in children.read_text().split() if children.exists() else ():
        words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        if b"torch.distributed.run" in words:
            return worker_of(int(child))
        if b"mobilenetv2" in words:
            return int(child)
    return None


def train(run: Path, arguments: list[str], kill: int | None) -> float:
    """One run on both machines, perhaps with a kill once it is on its way; its seconds."""
    started = time.monotonic()
    agents = [start(place, run, arguments) for place in range(2)]
    while any(agent.poll() is None for agent in agents):
        time.sleep(0.05)
        metrics = run / "metrics.jsonl"
        if kill is not None and metrics.exists() and metrics.read_text().count("\n") > 6:
            worker = worker_of(agents[kill].pid)
            assert worker is not None
            os.kill(worker, signal.SIGKILL)
            print(f"killed the process on {NAMES[kill]}", flush=True)
            kill = None
    codes = [agent.returncode for agent in agents]
    if any(codes):
        logs = [(run.parent / f"{run.name}-{place}.log").read_text()[-3000:] for place in range(2)]
        sys.exit(f"exit codes {codes}\n" + "\n".join(logs))
    assert kill is None, "the run was over before the kill"
    return time.monotonic() - started


def main() -> None:
    """Train undisturbed, then with a kill on each machine, and compare."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connect(stack)
        ends = []
        for name, kill in (("undisturbed", None), ("killed-a", 0), ("killed-b", 1)):
            seconds = train(folder / name, sys.argv[1:], kill)
            result = json.loads((folder / name / "result.json").read_text())
            print(
                f"{name}: {seconds:.0f} s, { ({key: result[key] for key in FIGURES}) }", flush=True
            )
            weights = Checkpoint.load(folder / name / "last.pth.tar").weights
            ends.append(([result[key] for key in FIGURES], weights))
        same = all(
            end[0] == ends[0][0]
            and all(torch.equal(end[1][key], ends[0][1][key]) for key in end[1])
            for end in ends
        )
        print(f"{'the same figures and weights' if same else 'THEY DIFFER'}; {headline()}")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    run_main(main)
