"""What the commands print: tables for people, and progress in a terminal."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from rich.progress import track as rich_track
from rich.table import Table
from rich.text import Text

from mobilenetv2.cli.console import console
from mobilenetv2.config import NetworkConfig
from mobilenetv2.printable import printable

if TYPE_CHECKING:
    from torch import nn

    from mobilenetv2.classifier import Classifier

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, quiet: bool) -> Iterator[Item]:
    """The items, with a progress bar on stderr if that is a terminal."""
    shown = console(stderr=True)
    if quiet or not shown.is_terminal:
        return iter(items)
    return iter(rich_track(items, "", total=total, console=shown, transient=True))


def print_evaluation(name: str, summary: dict[str, Any], quiet: bool) -> None:
    """A measured set in a line, and a table of its classes."""
    low, high = summary["accuracy_interval"]
    print(
        f"{name}: accuracy {summary['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"loss {summary['loss']:.4f}, macro-F1 {summary['macro_f1']:.4f}, "
        f"{summary['pictures']:,} pictures"
    )
    if quiet:
        return
    table = Table("class", "pictures", "precision", "recall", "F1", box=None, pad_edge=False)
    for row in summary["classes"]:
        counted = (row["predicted"], row["pictures"], row["predicted"] + row["pictures"])
        figures = (
            f"{row[key]:.1%}" if count else "–"
            for key, count in zip(("precision", "recall", "f1"), counted, strict=True)
        )
        table.add_row(Text(printable(row["class"])), f"{row['pictures']:,}", *figures)
    console().print(table)


def print_classifier(classifier: "Classifier") -> None:
    """What a saved classifier expects, knows and is made of."""
    wanted = classifier.preprocessing
    labels = list(map(printable, classifier.labels))
    print(f"{len(labels)} classes: {', '.join(labels[:12])}{', …' if len(labels) > 12 else ''}")
    print(
        f"pictures: {wanted.colour}, shorter side to {wanted.resize}, centre {wanted.height}×"
        f"{wanted.width}, mean {wanted.mean}, std {wanted.std}"
    )
    for name, value in classifier.training.items():
        print(printable(f"{name}: {value}"))
    size = (wanted.channels, wanted.height, wanted.width)
    print_network(classifier.network, classifier.config, size)


def print_network(network: "nn.Module", config: NetworkConfig, size: tuple[int, int, int]) -> None:
    """The layers with their costs, the strides, and the sums."""
    from mobilenetv2.network.cost import layer_costs

    costs = layer_costs(network, *size)
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "kind", "output", "parameters", "multiply-adds"):
        table.add_column(heading, justify="left" if heading in ("layer", "kind") else "right")
    for cost in costs:
        shape = "×".join(map(str, cost.output))
        table.add_row(cost.name, cost.kind, shape, f"{cost.params:,}", f"{cost.madds:,}")
    console().print(table)
    channels, height, width = size
    if config.strides is not None:
        plan = "·".join(map(str, config.strides))
        maps = [cost.output for cost in costs if len(cost.output) == 3]
        print(f"strides (stem, seven stages): {plan}; last map {maps[-1][1]}×{maps[-1][2]}")
    params, madds = sum(cost.params for cost in costs), sum(cost.madds for cost in costs)
    width_of = f" width {config.width:g}" if config.width else ""
    print(
        f"{config.network}{width_of}, {channels}×{height}×{width}: {params:,} "
        f"parameters, {madds / 1e6:,.2f} M multiply-adds"
    )
