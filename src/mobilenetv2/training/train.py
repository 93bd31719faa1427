"""Train a classifier, go on with a run, or search a learning rate: what happens around the loop."""

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mobilenetv2.config import TrainConfig
from mobilenetv2.distributed import ALONE, Processes, joined
from mobilenetv2.errors import ConfigError
from mobilenetv2.training import portions
from mobilenetv2.training.device import strictly
from mobilenetv2.training.find_lr import RangeTest, find_lr_of
from mobilenetv2.training.frozen_features import FrozenFeatures
from mobilenetv2.training.head import fit_first_head
from mobilenetv2.training.loop import Training, say
from mobilenetv2.training.memory import check_memory
from mobilenetv2.training.pick_up import (
    as_decided,
    claim_new,
    claim_old,
    ended_before,
    pick_up,
    restarted_run,
)
from mobilenetv2.training.progress import TensorBoard
from mobilenetv2.training.signals import StopRequest, stopped_at_once
from mobilenetv2.training.start import Tell, start


def train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Train a classifier into a new run folder.

    Args:
        config: every setting; with ``resume``, the run's own settings apply.
        console: where to show progress; nowhere if left out.

    Returns:
        The contents of ``result.json``; ``result["run"]`` names the folder.

    Raises:
        UserError: the settings or the data cannot be used; nothing was written.
        NonFiniteLoss: the loss left the numbers; the last good checkpoint is kept.
        Interrupted: a signal came; everything was saved.
    """
    if config.resume is not None:
        return resume(config.resume, console)
    if config.tensorboard:
        TensorBoard.require()
    with joined() as processes:
        if begun_before := restarted_run(config, processes):
            config = as_decided(config, begun_before, processes)
        with stopped_at_once("Nothing was written; begin again with the same command", processes):
            begun = start(config, processes, _teller(console, processes))
        if begun_before:
            config = begun.config.model_copy(update={"overwrite": False})
            result = ended_before(begun_before, config, processes)
            return result or resume(begun_before, console, config)
        with (
            claim_new(begun.config, processes) as folder,
            StopRequest(folder.go_on, processes) as stop,
            strictly(begun.config.machine.deterministic),
        ):
            return Training(begun, folder, console, stop, processes).run()


def resume(
    path: Path, console: Console | None = None, config: TrainConfig | None = None
) -> dict[str, Any]:
    """Go on with the run in ``path`` from its newest checkpoint that can be used.

    Args:
        path: the run folder.
        console: where to show progress; nowhere if left out.
        config: the settings that the caller has in mind; the run's own if left out. Only what says
            where it runs and what it shows may differ from those.

    Returns:
        As :func:`train`.

    Raises:
        ModelFileError: there is no run, or no checkpoint can be used.
        ConfigError: the run is finished already, was begun with other settings, or another program
            is at work in it.
    """
    with (
        joined() as processes,
        claim_old(path, processes) as folder,
        StopRequest(folder.go_on, processes) as stop,
    ):
        with stop.at_once():
            begun, checkpoint = pick_up(folder, config, processes, _teller(console, processes))
        with strictly(begun.config.machine.deterministic):
            return Training(begun, folder, console, stop, processes, checkpoint).run()


def run_range_test(config: TrainConfig, console: Console | None = None) -> RangeTest:
    """The learning-rate range test for what :func:`train` would train; writes nothing.

    Args:
        config: every setting.
        console: where to say what it is for; nowhere if left out.

    Raises:
        UserError: the settings or the data cannot be used, or a head is solved without any rate.
        WorkFailed: the loss never fell.
        Interrupted: a signal came.
    """
    with stopped_at_once("Nothing was written; search again with the same command"):
        begun = start(config, tell=_teller(console))
        if console:
            for note in begun.notes:
                say(console, note)
        if begun.tuning.head_only:
            raise ConfigError(
                f"{begun.tuning.reason}: a head is solved without a learning rate; find one for "
                "--tune all, or for a number of blocks"
            )
        check_memory(begun)
        with strictly(config.machine.deterministic):
            if begun.tuning.pretrained:  # the test starts from what training starts from
                pictures = portions.for_first_head(begun.data)
                reason = begun.device.why_pytorch_measures(begun.classifier)
                runtime = "cpp" if reason is None else "torch"
                fit_first_head(begun, pictures, FrozenFeatures(begun.classifier, runtime))
            return find_lr_of(begun)


def _teller(console: Console | None, processes: Processes = ALONE) -> Tell:
    """Says lines on the console, in the first process alone."""
    if console is None or not processes.is_first:
        return lambda _: None
    return partial(say, console)
