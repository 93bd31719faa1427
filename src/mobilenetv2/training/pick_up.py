"""Taking a run folder: a new one, or one to go on with, if it can go on as it was begun."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mobilenetv2.config import TrainConfig
from mobilenetv2.distributed import ALONE, Processes
from mobilenetv2.errors import ConfigError
from mobilenetv2.network.build import complete
from mobilenetv2.training.checkpoints import Checkpoint, labels_digest, require_same_settings
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.start import Start, Tell, start, start_again


def claim_new(config: TrainConfig, processes: Processes) -> RunFolder:
    """The folder for a new run: the first process takes it, the others know its name.

    Raises:
        ConfigError: it cannot be had.
    """
    if processes.is_first:
        return RunFolder.create(config)
    return RunFolder(_named(config))


def claim_old(path: Path, processes: Processes) -> RunFolder:
    """The folder of a run to go on with, in the same way.

    Raises:
        UserError: it cannot be had.
    """
    return RunFolder.open_to_go_on(path) if processes.is_first else RunFolder(path)


def restarted_run(config: TrainConfig, processes: Processes) -> Path | None:
    """The run that this program had begun when ``torchrun`` started it again, if it has.

    Raises:
        ConfigError: nobody named the folder, so a restart would not find it.
    """
    if processes.count == 1 and not processes.restarts:
        return None
    folder = RunFolder(_named(config))
    # Each machine counts its own restarts: where another one's process died, here are none.
    again = processes.largest(processes.restarts) > 0 and folder.has_begun
    return folder.path if processes.from_first(again) else None


def as_decided(config: TrainConfig, path: Path, processes: Processes) -> TrainConfig:
    """The settings with what the run in ``path`` has found for ``weights: auto``.

    A restart does not search anew: what can be had may have changed, the run must not.
    """
    if config.transfer.weights != "auto":
        return config
    weights = processes.from_first(
        RunFolder(path).read_config().transfer.weights if processes.is_first else ""
    )
    return config.without_weights if weights == "none" else config.with_weights(weights)


def ended_before(path: Path, config: TrainConfig, processes: Processes) -> dict[str, Any] | None:
    """The result of a run that had ended when ``torchrun`` started its processes again.

    As it does when one of them dies on its way out.

    Raises:
        ConfigError: it was begun with other settings, so it is not the run that was asked for.
    """
    folder = RunFolder(path)
    result = None
    if processes.is_first and folder.result.exists():
        begun_with = folder.read_config().model_dump(mode="json")
        require_same_settings(config, begun_with, f"--out {path}: holds another run")
        result = json.loads(folder.result.read_text(encoding="utf-8")) | {"run": str(path)}
    return processes.from_first(result)


def pick_up(
    folder: RunFolder,
    asked: TrainConfig | None = None,
    processes: Processes = ALONE,
    tell: Tell = lambda _: None,
) -> tuple[Start, Checkpoint | None]:
    """What a run goes on with.

    Args:
        folder: of the run; the first process alone looks into it.
        asked: the settings that the user has in mind; the run's own where left out.
        processes: those that will go on together, as many as before or not.
        tell: is called with a line for the user where there is something to wait for.

    Returns:
        Data and network as at the beginning, and the newest checkpoint that can be used: None
        where the run was stopped before its first one.

    Raises:
        ModelFileError: no checkpoint can be used.
        ConfigError: the run is finished already, or was begun with other settings.
    """
    found = processes.from_first(_read(folder, asked) if processes.is_first else None)
    assert found is not None
    config, checkpoint, notes = found
    if checkpoint is None:
        return start(config, tell=tell), None
    origin = f"--resume {folder.path}"
    require_same_settings(config, checkpoint.settings, origin)
    stored = checkpoint.build_classifier(str(folder.last))
    begun = start_again(config, stored.preprocessing, tell)
    size = stored.preprocessing
    network = complete(stored.config, size.height, size.width)  # as this version completes it
    if (stored.labels, network) != (begun.classifier.labels, begun.config.network):
        raise ConfigError(
            f"{origin}: the checkpoint is for another network or other labels "
            f"({', '.join(stored.labels[:5])}, …) than config.yaml and the data say"
        )
    if checkpoint.labels_digest != labels_digest(begun.data.train, begun.data.val):
        raise ConfigError(
            f"{origin}: the pictures in {begun.config.data.data} are not those that the run was "
            "begun with (their number or their labels differ); bring those back, or start a new run"
        )
    return replace(begun, notes=notes), checkpoint


def _read(
    folder: RunFolder, asked: TrainConfig | None
) -> tuple[TrainConfig, Checkpoint | None, tuple[str, ...]]:
    """Settings to go on with, the newest good checkpoint, and what is wrong with newer ones."""
    origin = f"--resume {folder.path}"
    if folder.result.exists():
        raise ConfigError(
            f"{origin}: this run is finished; `mobilenetv2 evaluate {folder.path}` measures it"
        )
    own = folder.read_config()
    config = own if asked is None else asked
    if config.overwrite or config.out != own.out:
        raise ConfigError(f"{origin}: --out and --overwrite are for new runs; leave them out")
    require_same_settings(config, own.model_dump(mode="json"), origin)
    if not folder.has_begun:
        return config, None, ()
    found, _, notes = Checkpoint.load_first_good(folder.last, folder.previous, folder.best)
    return config, found, (*notes, *_other_arithmetic(config, own))


def _other_arithmetic(config: TrainConfig, own: TrainConfig) -> tuple[str, ...]:
    """Words where the steps to come are not computed as those that were done."""
    now, then = (one.machine.model_dump(mode="json") for one in (config, own))
    changed = [
        f"{name} {now[name]} instead of {then[name]}"
        for name in now
        if name != "device" and now[name] != then[name]
    ]
    if not changed:
        return ()
    return (f"goes on with {', '.join(changed)}: its bits will not be those of a run in one go",)


def _named(config: TrainConfig) -> Path:
    if config.out is None:
        raise ConfigError(
            "torchrun: name the run folder (--out FOLDER), so that all processes, and those of a "
            "restart, mean the same one"
        )
    return config.out
