"""``train`` and ``find-lr``."""

from pathlib import Path

from mobilenetv2.cli.arguments import made, read_train_config
from mobilenetv2.cli.console import console
from mobilenetv2.cli.voice import is_first


def train_command(arguments: list[str]) -> int:
    """Train a classifier, or go on with a run."""
    config = read_train_config("train", arguments)
    from mobilenetv2.training.train import resume, train

    shown = console(quiet=config.quiet)
    result = resume(config.resume, shown, config) if config.resume else train(config, shown)
    if not is_first():
        return 0
    set_name, key = "test", "test_accuracy"
    if result[key] is None:
        set_name, key = "validation", "val_accuracy"
    low, high = result["accuracy_interval"]
    kept = f"{result['kept']} epoch {result['best_epoch']} of {result['epochs']}, "
    print(
        f"{set_name} accuracy {result[key]:.2%} (95 % interval {low:.2%} to {high:.2%}), "
        f"{kept if result['steps'] else ''}"
        f"{result['seconds']:.1f} s: {result['run']}"
    )
    return 0


def find_lr_command(arguments: list[str]) -> int:
    """Suggest a learning rate by a range test."""
    config = read_train_config("find-lr", arguments)
    from mobilenetv2.evaluation import curves, plots
    from mobilenetv2.training.train import run_range_test

    folder = made("--out", config.out or Path())
    test = run_range_test(config, console(quiet=config.quiet))
    print(f"suggested learning rate: {test.suggestion:g}")
    if not config.quiet:
        print(f"{test.reason}.")
    picture = folder / "find-lr.png"
    figure = curves.lr_range(test.lrs, test.losses, test.smoothed, test.suggestion)
    plots.save(figure, picture)
    if not config.quiet:
        print(f"The curve: {picture}")
    return 0
