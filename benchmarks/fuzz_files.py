"""Load models and checkpoints that a stranger might send, and see that nothing bad comes of it.

Every case (see ``bent_files.py``) must either load or be refused in words, within a second, without
a crash and without memory beyond twice the file and a fixed allowance. Cases run in child
processes, so that a crash is counted and its case named. What seems slow is tried again, so that
other work on the machine is not counted as a hang.

    python benchmarks/fuzz_files.py                    # 20,000 cases
    python benchmarks/fuzz_files.py --cases 2000000 --minutes 120 --corpus FOLDER
    python benchmarks/fuzz_files.py --only 4711 --kind model      # a case that failed, again
    python benchmarks/fuzz_files.py --replay FOLDER    # what an earlier call has kept

A corpus keeps the cases that were treated badly, and one for each different answer.
"""

import argparse
import gc
import json
import mmap
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bent_files import GoodFiles, bent_file, good_files
from machine import headline, run_main
from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import ModelFileError
from mobilenetv2.training.checkpoints import Checkpoint

ALLOWANCE = 256 << 20  # bytes of address space for everything but the file
LONGEST = 1.0  # seconds
GIVEN_UP = 60.0  # seconds after which a case's process is ended
ENDED_BY_CLOCK = (signal.SIGALRM, signal.SIGPROF)
TRIES = 3  # of a case that works for long
TRIES_ON_THE_CLOCK = 10  # of one that waits for long
PAUSE = 0.5  # seconds between them
CASES_PER_CHILD = 5000
TOLD_EVERY = 100_000  # cases
CHECKPOINTS = 50  # one case in so many is a checkpoint, the others are models
MEMORY_FOLDER = Path("/dev/shm")  # nothing here is about disks


class Case(NamedTuple):
    """A file to try.

    Attributes:
        name: its kind and its number.
        make: gives the file.
    """

    name: str
    make: Callable[[], bytes]

    @property
    def kind(self) -> str:
        """What it pretends to be."""
        return self.name.partition("-")[0]


@dataclass
class Findings:
    """What came of cases.

    Attributes:
        bad: what was wrong with the treatment of some, by name.
        answers: the name of the first case of each different answer.
    """

    bad: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a file was answered with.

    Attributes:
        words: of the refusal; "loaded" for none; what went wrong where neither happened.
        is_good: whether it is one of the first two.
        seconds: of work, and on the clock.
    """

    words: str
    is_good: bool
    seconds: tuple[float, float]


def load_checkpoint(path: Path) -> Classifier:
    """As ``mobilenetv2 evaluate FILE`` does."""
    return Checkpoint.load(path).build_classifier(str(path))


LOADERS: dict[str, Callable[[Path], Any]] = {
    "model": Classifier.load,
    "checkpoint": load_checkpoint,
}


def ask(path: Path, kind: str) -> Answer:
    """Load a file."""
    words, is_good = "loaded", True
    started = time.process_time(), time.monotonic()
    try:
        LOADERS[kind](path)
    except ModelFileError as error:
        words = str(error).replace(str(path), "FILE")
    except BaseException as error:
        words, is_good = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}", False
    seconds = time.process_time() - started[0], time.monotonic() - started[1]
    return Answer(words, is_good, seconds)


def ask_patiently(path: Path, kind: str) -> tuple[str, str | None]:
    """The answer for a file, and what is wrong with it.

    What takes long is tried again, and where others have the cores, again after a pause.

    Returns:
        Words of the answer; None, or what is wrong.
    """
    worked = waited = 0
    while True:
        answer = ask(path, kind)
        work, clock = answer.seconds
        if not answer.is_good:
            return answer.words, answer.words
        if max(work, clock) <= LONGEST:
            return answer.words, None
        worked += work > LONGEST
        waited += 1
        if worked == TRIES or waited == TRIES_ON_THE_CLOCK:
            return answer.words, f"{work:.1f} s of work, {clock:.1f} s in all: {answer.words}"
        time.sleep(PAUSE)


def shape(words: str) -> str:
    """An answer without what differs from file to file: numbers, names and what the file says."""
    line = words.partition("\n")[0]
    line = re.sub(r"'[^']*'?|\"[^\"]*\"?|`.*|\b(?:got|type:) .*|\\x..|[^ -~]|[-+.\d]*\d", "…", line)
    return re.sub(r"…[, …]*", "…", line)[:90]


class Fuzzer:
    """Runs cases in child processes and keeps what they find.

    Args:
        folder: for the file that is being tried; in memory, preferably.
        corpus: gets the cases worth keeping, if there is one.
    """

    def __init__(self, folder: Path, corpus: Path | None) -> None:
        self.findings = Findings()
        self._path = folder / "file"
        self._report = folder / "report"
        self._corpus = corpus
        self._now = mmap.mmap(-1, 8)  # the case that a child is at, also when it has died of it

    def run(self, cases: Sequence[Case]) -> None:
        """Try cases, in as many processes as it takes."""
        first, tries = 0, 0
        while first < len(cases):
            status = self._in_child(self._try_all, cases, first)
            self._merge_report()
            if not status:
                return
            at = int.from_bytes(self._now[:], "little")
            tries = tries + 1 if at == first else 1
            first = at
            is_slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) in ENDED_BY_CLOCK
            if not is_slow or tries == TRIES:
                words = "took too long" if is_slow else f"the process died with status {status}"
                self._tell(cases[at].name, words)
                self._keep(cases[at].name, cases[at].make())
                first += 1

    def _try_all(self, cases: Sequence[Case], first: int) -> None:
        for place in range(first, len(cases)):
            case = cases[place]
            self._now[:] = place.to_bytes(8, "little")
            contents = case.make()
            self._path.write_bytes(contents)
            for clock in (signal.ITIMER_PROF, signal.ITIMER_REAL):
                signal.setitimer(clock, GIVEN_UP)
            words, wrong = ask_patiently(self._path, case.kind)
            if wrong or shape(words) not in self.findings.answers:
                self.findings.answers.setdefault(shape(words), case.name)
                self._keep(case.name, contents)
                with self._report.open("a") as file:
                    file.write(json.dumps([case.name, shape(words), wrong]) + "\n")

    def _in_child(self, work: Callable[..., None], *arguments: object) -> int:
        """Do something in a process of its own, with little memory; how that ended."""
        self._report.write_text("")
        child = os.fork()
        if child:
            return os.waitpid(child, 0)[1]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = used + ALLOWANCE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            work(*arguments)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(70)

    def _merge_report(self) -> None:
        for line in self._report.read_text().splitlines():
            name, words, wrong = json.loads(line)
            self.findings.answers.setdefault(words, name)
            if wrong:
                self._tell(name, wrong)

    def _tell(self, name: str, wrong: str) -> None:
        self.findings.bad[name] = wrong
        print(f"{name}: {wrong}", flush=True)

    def _keep(self, name: str, contents: bytes) -> None:
        if self._corpus is not None:
            (self._corpus / name).write_bytes(contents)


def drawn_cases(numbers: Iterable[int], kind: str, good: tuple[GoodFiles, GoodFiles]) -> list[Case]:
    """Cases by their numbers."""

    def drawn(number: int) -> Case:
        is_checkpoint = number % CHECKPOINTS == CHECKPOINTS - 1
        chosen = kind if kind != "both" else "checkpoint" if is_checkpoint else "model"
        return Case(f"{chosen}-{number}", lambda: bent_file(number, chosen, good))

    return [drawn(number) for number in numbers]


def kept_cases(corpus: Path) -> list[Case]:
    """The files of a corpus."""
    return [Case(path.name, path.read_bytes) for path in sorted(corpus.iterdir())]


def drawn_parts(options: argparse.Namespace) -> Iterator[range]:
    """Numbers of cases, a process's worth at a time, until it is time to stop."""
    if options.only is not None:
        yield range(options.only, options.only + 1)
        return
    started, end = time.monotonic(), options.seed + options.cases
    for first in range(options.seed, end, CASES_PER_CHILD):
        if time.monotonic() - started > 60 * options.minutes:
            return
        yield range(first, min(first + CASES_PER_CHILD, end))


def main() -> None:
    """Run the cases; print how many, and those that were treated badly."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no more after so long")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=("both", *LOADERS), default="both")
    parser.add_argument("--corpus", type=Path, help="a folder for the cases worth keeping")
    parser.add_argument("--only", type=int, help="one case, by its number")
    parser.add_argument("--replay", type=Path, help="the cases of a corpus in place of new ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.corpus:
        options.corpus.mkdir(parents=True, exist_ok=True)
    good = good_files()
    memory = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        for kind in LOADERS:  # what children would have to import, each for itself
            for path, contents in ((folder / "x", good[1].model), (folder / "y", good[1].archive)):
                path.write_bytes(contents)
                ask(path, kind)
        gc.freeze()
        fuzzer = Fuzzer(folder, options.corpus)
        started = time.monotonic()
        done = 0
        if options.replay:
            kept = kept_cases(options.replay)
            fuzzer.run(kept)
            done = len(kept)
        for numbers in [] if options.replay else drawn_parts(options):
            fuzzer.run(drawn_cases(numbers, options.kind, good))
            done += len(numbers)
            if done % TOLD_EVERY == 0:
                print(f"{done:,} so far, {len(fuzzer.findings.bad)} treated badly", flush=True)
    gc.unfreeze()
    took = time.monotonic() - started
    findings = fuzzer.findings
    print(
        f"{done:,} cases in {took:.0f} s, {len(findings.bad)} treated badly, "
        f"{len(findings.answers)} different answers; {headline()}"
    )
    if options.only is not None:
        print(*findings.answers, sep="\n")
    sys.exit(1 if findings.bad else 0)


if __name__ == "__main__":
    run_main(main)
