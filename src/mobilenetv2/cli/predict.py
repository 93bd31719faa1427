"""``predict``: what pictures show, on the terminal or into a file."""

import os
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobilenetv2.cli.arguments import parse
from mobilenetv2.cli.runtime import in_runtime
from mobilenetv2.cli.voice import complain, remark
from mobilenetv2.command_config import PredictConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.printable import printable
from mobilenetv2.terminal import track

if TYPE_CHECKING:
    from mobilenetv2.classifier import Classifier
    from mobilenetv2.distributed import Processes


def predict_command(arguments: list[str]) -> int:
    """Name what pictures show."""
    config = parse("predict", PredictConfig, arguments)
    from mobilenetv2.distributed import joined

    with joined() as processes:
        return _predict_with(config, processes)


def _predict_with(config: PredictConfig, processes: "Processes") -> int:
    """Processes share the files; the first one prints and writes."""
    from mobilenetv2.data.picture_tree import list_pictures
    from mobilenetv2.evaluation.predict_files import predict_together, workers_for
    from mobilenetv2.training.device import find_device
    from mobilenetv2.training.load import load

    paths = list_pictures(config.pictures)
    classifier = load(config.model, remark)
    classifier.network.to(find_device(config.machine.device))
    workers = workers_for(classifier, paths)
    classifier = in_runtime(classifier, config.machine.runtime, len(paths), config.quiet, workers)
    if config.csv or config.jsonl:
        return _predict_into_file(config, classifier, paths, workers, processes)
    unreadable = 0
    for prediction in predict_together(classifier, paths, config.top, workers, processes):
        unreadable += prediction.error is not None
        if not processes.is_first:
            continue
        if prediction.error is not None:
            complain(f"{prediction.path}: {prediction.error}")
            continue
        words = (f"{one.label} {one.probability:.1%}" for one in prediction.predictions)
        print(printable(f"{prediction.path}: {'  '.join(words)}"), flush=True)
    return 1 if unreadable else 0


def _predict_into_file(
    config: PredictConfig,
    classifier: "Classifier",
    paths: Sequence[Path],
    workers: int,
    processes: "Processes",
) -> int:
    """Append to the file, batch by batch; a rerun leaves out what is in it already."""
    from mobilenetv2.evaluation.predict_files import predict_together
    from mobilenetv2.evaluation.prediction_table import (
        CsvWriter,
        JsonLinesWriter,
        already_written,
        append,
        require_same_classifier,
    )

    top = min(config.top, len(classifier.labels))
    target = config.csv or config.jsonl
    assert target is not None
    writer = CsvWriter(top) if config.csv else JsonLinesWriter(top)
    try:
        written = already_written(target, writer) if processes.is_first else []
        require_same_classifier(target, written, classifier)
        done = processes.from_first({one.name for one in written})
        remaining = [path for path in paths if writer.name(path) not in done]
        predictions = predict_together(classifier, remaining, top, workers, processes)
        if not processes.is_first:
            deque(predictions, maxlen=0)  # only works along
            return 0
        shown = track(predictions, len(remaining), quiet=config.quiet)
        unreadable = append(target, writer, shown)
    except BrokenPipeError:  # a pipe's reader has seen enough
        raise
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error})") from error
    failed = {one.name for one in written if one.best is None}
    earlier = sum(writer.name(path) in failed for path in paths)
    words = [f"{len(paths):,} pictures", f"{unreadable + earlier:,} unreadable"]
    if len(remaining) < len(paths):
        words.append(f"{len(paths) - len(remaining):,} from an earlier call")
    summary = f"{', '.join(words)}: {target}"
    if earlier:
        summary += (
            f"\n{earlier:,} could not be read in an earlier call; to try again, remove the lines "
            f"with an error from {target}"
        )
    # Where the lines went to standard output, this is none of them.
    print(summary, file=sys.stderr if _is_standard_output(target) else sys.stdout)
    return 0


def _is_standard_output(target: Path) -> bool:
    try:
        return os.path.samestat(target.stat(), os.fstat(1))
    except OSError:
        return False
