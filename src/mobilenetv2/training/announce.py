"""What a run says and shows before its first step."""

from collections.abc import Iterator, Sequence

from mobilenetv2.config import TrainConfig
from mobilenetv2.data.augment import train_size
from mobilenetv2.data.batches import Batches
from mobilenetv2.data.examination import KINDS, UNUSABLE_KINDS, Examination
from mobilenetv2.data.sources import DataSet
from mobilenetv2.evaluation import plots
from mobilenetv2.evaluation.plots import count_of
from mobilenetv2.network.cost import count_madds, count_params
from mobilenetv2.printable import printable
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.start import Start

FEW = 5
"""Validation pictures of a class, below which the user is told."""


def announcement(begun: Start, steps_per_epoch: int, folder: RunFolder) -> Iterator[str]:
    """Pictures and their health, network and cost, machine and length, in lines."""
    data, config = begun.data, begun.config
    size, network = data.preprocessing, config.network
    test = "" if data.test is None else f", {len(data.test):,} test"
    params = count_params(begun.classifier.network)
    madds = count_madds(begun.classifier.network, size.channels, size.height, size.width)
    yield from _health(data.examination)
    yield from begun.notes
    seen = train_size(config.augment, (size.height, size.width))
    other = "" if seen == (size.height, size.width) else f", in training {seen[0]}×{seen[1]}"
    yield (
        f"{data.name}: {len(data.train):,} training, {len(data.val):,} validation{test} pictures; "
        f"{len(data.classes)} classes; {size.height}×{size.width} {size.colour}{other}"
    )
    width = f" width {network.width:g}" if network.width else ""
    yield (
        f"{network.network}{width}: {params:,} parameters, {madds / 1e6:,.1f} M multiply-adds; "
        f"{begun.device.device}, {begun.device.precision}; {begun.device.fast_ops.reason}"
        f"{'; compiled by torch.compile in the first steps' if begun.device.compiled else ''}"
        f"{'; steps replayed as CUDA graphs' if begun.device.recorded else ''}"
    )
    yield from _few_to_validate(data)
    yield from _not_used(config)
    if begun.tuning.head_only:
        yield f"a head is solved in one go, without epochs; {folder.path}"
        return
    if config.batch_size > len(data.train):
        yield f"the batch of {config.batch_size} is larger than the set: every step takes all of it"
    epochs, steps = count_of(config.epochs, "epoch"), count_of(steps_per_epoch, "step")
    yield f"{epochs} of {steps}; {folder.path}"


def show_first_batch(batches: Batches, labels: Sequence[str], folder: RunFolder) -> None:
    """Draw what training will show the network, before hours are spent on it."""
    figure = plots.first_batch(next(batches.epoch(0)), labels)
    plots.save(figure, folder.path / "first-batch.png")


def _few_to_validate(data: DataSet) -> Iterator[str]:
    """What to know of a validation set that says little of some class."""
    counts = data.val.labels.bincount(minlength=len(data.classes)).tolist()
    few = {name: count for name, count in zip(data.classes, counts, strict=True) if count < FEW}
    if not few:
        return
    shown = ", ".join(f"{count} of {printable(name)!r}" for name, count in list(few.items())[:5])
    own = data.examination is not None and "val" in data.examination.splits
    more = "put more there" if own else "a larger --val-fraction holds out more"
    yield (
        f"few pictures to validate on: {shown}{', …' if len(few) > 5 else ''}; what is said of so "
        f"few is mostly luck ({more})"
    )


def _not_used(config: TrainConfig) -> Iterator[str]:
    """Settings of the schedule that change nothing."""
    schedule = config.schedule
    if schedule.milestones and schedule.schedule != "multistep":
        yield f"--milestones are not used by --schedule {schedule.schedule}, only by multistep"
    elif beyond := [f"{one:g}" for one in schedule.milestones if one >= config.epochs]:
        yield f"milestones that do not come before the end: {', '.join(beyond)}"
    if schedule.gamma is not None and schedule.schedule not in ("exponential", "multistep"):
        yield f"--gamma is not used by --schedule {schedule.schedule}"


def _health(examination: Examination | None) -> Iterator[str]:
    """What the doctor says of a folder."""
    if examination is None:
        return
    for picture in examination.pictures:
        if not picture.usable:
            yield printable(f"left out: {picture.path}: {picture.reason}")
    if strays := examination.strays_in_words():
        yield printable(strays)
    serious = [finding for finding in examination.findings if finding.severity != "note"]
    if serious:
        yield (
            f"the doctor has {count_of(len(serious), 'finding')}; "
            f"`mobilenetv2 inspect {examination.root}` shows them"
        )
    # Pictures left out are named above.
    kinds = [kind for kind in KINDS if kind not in UNUSABLE_KINDS]
    errors = {kind: examination.of_kind(kind) for kind in kinds if KINDS[kind].severity == "error"}
    told = [
        f"{len(found):,} × {KINDS[kind].title} ({KINDS[kind].meaning})"
        for kind, found in errors.items()
        if found
    ]
    if told:
        yield f"errors among them: {', '.join(told)}"
