"""What the preparation inside an exported file costs: beside Pillow's, and beside the network's.

A model is exported with its preparation and without (`--raw`), in each format whose library is
installed, and both files are run by turns on one picture of each size; so is Pillow, which does the
same outside. Formats that fix the size get a file for each.

    python benchmarks/preparation.py runs/photos
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np

import mobilenetv2
from machine import headline, run_main
from mobilenetv2.classifier import Classifier
from mobilenetv2.runtimes.sessions import Array
from mobilenetv2.shipping.export import FORMATS
from mobilenetv2.shipping.formats import Content, Format

SIZES = ((375, 500), (1500, 2000), (3024, 4032))
"""Height and width of the pictures: from the web, a screen's, a phone's."""


def milliseconds(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each, by turns; the threads of the one before rest during a first run."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()
            started = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: median(values) for name, values in times.items()}


def sides(
    classifier: Classifier, form: Format, picture: Array, folder: Path
) -> dict[str, Callable[[], object]]:
    """The file, the file without preparation, and Pillow's preparation, of one picture."""
    size = (picture.shape[0], picture.shape[1]) if form.fixed_size else None
    whole = form.open(form.write(Content(classifier, picture_size=size), folder, "whole"))
    raw = form.open(form.write(Content(classifier, raw=True), folder, "raw"))
    prepared = classifier.prepare(picture)
    normalised = classifier.normalize(prepared[None]).numpy()
    logits, expected = whole(picture[None])["logits"], raw(normalised)["logits"]
    assert np.allclose(logits, expected, atol=1e-4), f"{form.name} prepares otherwise"
    return {
        "whole": lambda: whole(picture[None]),
        "raw": lambda: raw(normalised),
        "pillow": lambda: classifier.prepare(picture),
    }


def main() -> None:
    """Measure, and print a row for each format and size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--format", nargs="+", default=sorted(set(FORMATS) - {"web"}))
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    classifier = mobilenetv2.load(arguments.model)
    random = np.random.default_rng(0)
    print(headline(), "- milliseconds for one picture", flush=True)
    print(f"{'format':<12}{'size':>12}{'file':>9}{'network':>9}{'inside':>9}{'Pillow':>9}")
    for name in arguments.format:
        form = FORMATS[name]
        if not all(map(find_spec, form.libraries)):
            continue
        for size in SIZES:
            picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
            with tempfile.TemporaryDirectory() as folder:
                works = sides(classifier, form, picture, Path(folder))
                times = milliseconds(works, arguments.rounds)
            inside = times["whole"] - times["raw"]
            figures = (times["whole"], times["raw"], inside, times["pillow"])
            shape = f"{size[0]}×{size[1]}"
            print(f"{name:<12}{shape:>12}" + "".join(f"{one:9.2f}" for one in figures), flush=True)


if __name__ == "__main__":
    run_main(main)
