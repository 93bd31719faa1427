"""``inspect``: a model's layers and costs, or the health of a folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from mobilenetv2.cli.arguments import made, parse
from mobilenetv2.cli.console import console
from mobilenetv2.cli.voice import remark
from mobilenetv2.command_config import InspectConfig
from mobilenetv2.complaints import suggestion
from mobilenetv2.config import NetworkConfig, NetworkName, Section
from mobilenetv2.errors import ConfigError
from mobilenetv2.terminal import print_classifier, print_network


def inspect_command(arguments: list[str]) -> int:
    """Show a model or examine a folder."""
    config = parse("inspect", InspectConfig, arguments)
    names = get_args(NetworkName)
    if config.thing is None:
        _inspect_network(config, config.network.network)
        return 0
    path = Path(config.thing)
    if config.thing in names and not path.exists():
        if config.network.network not in (config.thing, names[0]):
            raise ConfigError(
                f"--network {config.network.network}: {config.thing} is to be shown; name one"
            )
        _inspect_network(config, config.thing)
    elif path.is_dir() and not _is_run(path):
        _refuse(_of_networks(config), f"{path} is a folder of pictures")
        return _inspect_folder(config, path)
    else:
        if not path.exists():
            raise ConfigError(
                f"{config.thing}: there is no run folder, model file or folder of pictures of this "
                f"name, and the networks are {' and '.join(names)}{suggestion(config.thing, names)}"
            )
        from mobilenetv2.training.load import load

        classifier = load(path, remark)
        _refuse(_of_networks(config) + _of_folders(config), f"{path} is a finished classifier")
        print_classifier(classifier)
    return 0


def _of_networks(config: InspectConfig) -> list[str]:
    sizes = _given(config, ("image_size", "classes", "channels"))
    return sizes + _given(config.network, NetworkConfig.model_fields)


def _of_folders(config: InspectConfig) -> list[str]:
    return _given(config, ("strict", "report"))


def _given(settings: Section, names: Iterable[str]) -> list[str]:
    """The flags among ``names`` that ask for something else than would be done anyway."""
    untouched = type(settings)()
    changed = (name for name in names if getattr(settings, name) != getattr(untouched, name))
    return [f"--{name.replace('_', '-')}" for name in changed]


def _refuse(flags: Sequence[str], why: str) -> None:
    if flags:
        raise ConfigError(f"{', '.join(flags)}: not used, as {why}; leave out what is not used")


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "config.yaml").is_file()
    except PermissionError:  # told in words where its pictures are looked for
        return False


def _inspect_network(config: InspectConfig, name: str) -> None:
    _refuse(_of_folders(config), f"{name} is a network")
    if name == "first-version":
        scaled = _given(config.network, ("width", "strides"))
        _refuse(scaled, "the plain first version has one width and one plan of strides")
    import torch

    from mobilenetv2.network.build import build_network, complete

    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    settings = config.network.model_copy(update={"network": name})
    settings = complete(settings, height, width)
    with torch.device("meta"):
        network = build_network(settings, config.classes, config.channels)
    print_network(network, settings, (config.channels, height, width))


def _inspect_folder(config: InspectConfig, folder: Path) -> int:
    from mobilenetv2.data.contact_sheet import contact_sheet
    from mobilenetv2.data.doctor_table import render
    from mobilenetv2.data.folders import scan_folder
    from mobilenetv2.data.known_folders import examine_once
    from mobilenetv2.files import write_text, written_whole

    examination = examine_once(scan_folder(folder), anew=True)
    if not config.quiet:
        render(examination, console())
    if config.report:
        made("--report", config.report)
        write_text(config.report / "doctor.json", examination.to_json())
        with written_whole(config.report / "doctor.png") as file:
            contact_sheet(examination).save(file, "PNG")
        print(f"report: {config.report}")
    serious = [finding for finding in examination.findings if finding.severity != "note"]
    return 1 if config.strict and serious else 0
