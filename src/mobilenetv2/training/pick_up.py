"""Going on with a run: what its folder holds, and whether it can go on as it was begun."""

from dataclasses import replace

from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.training.checkpoints import Checkpoint, labels_digest, require_same_settings
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.start import Start, start, start_again


def pick_up(folder: RunFolder, asked: TrainConfig | None = None) -> tuple[Start, Checkpoint | None]:
    """What a run goes on with.

    Args:
        folder: of the run.
        asked: the settings that the user has in mind; the run's own where left out.

    Returns:
        Data and network as at the beginning, and the newest checkpoint that can be used: None
        where the run was stopped before its first one.

    Raises:
        ModelFileError: no checkpoint can be used.
        ConfigError: the run is finished already, or was begun with other settings.
    """
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
        return start(config), None
    checkpoint, notes = Checkpoint.load_first_good(folder.last, folder.previous, folder.best)
    require_same_settings(config, checkpoint.settings, origin)
    stored = checkpoint.build_classifier(str(folder.last))
    begun = start_again(config, stored.preprocessing)
    if (stored.labels, stored.config) != (begun.classifier.labels, begun.config.network):
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
