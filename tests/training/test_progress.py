"""What people see of a run: a bar in a terminal, a line per epoch, TensorBoard."""

import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

import mobilenetv2
from mobilenetv2.config import TrainConfig
from mobilenetv2.errors import ConfigError
from mobilenetv2.training.progress import EpochLines, LiveBar, epoch_line
from mobilenetv2.training.reporter import start_reporter
from mobilenetv2.training.run_folder import RunFolder

EPOCH = {
    "event": "epoch", "epoch": 3, "step": 30, "train_loss": 0.51234, "train_accuracy": 0.99,
    "val_loss": 0.6, "val_accuracy": 0.9555, "gap": 0.0345, "lr": 0.00123456, "seconds": 12.34,
    "images_per_second": 12345.6,
}  # fmt: skip


def steps(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {"event": "step", "epoch": 1, "step": s, "loss": 2.0, "accuracy": 0.25, "lr": 0.1}
        for s in range(first, last + 1)
    ]


def test_an_epoch_in_words() -> None:
    assert epoch_line(EPOCH, 120) == (
        "epoch   3/120  train 0.5123 99.00%  validation 0.6000 95.55%  gap +3.45 points  "
        "lr 0.0012  12,346 pictures/s  12.3 s"
    )


def test_a_head_that_was_solved_has_no_epochs() -> None:
    assert epoch_line({**EPOCH, "step": 0}, 1) == (
        "train 0.5123 99.00%  validation 0.6000 95.55%  gap +3.45 points"
    )


@pytest.mark.parametrize("width", [20, 80, 300])
def test_a_log_line_is_one_line_however_narrow(width: int) -> None:
    file = io.StringIO()
    lines = EpochLines(Console(file=file, width=width), 120)
    lines.record([*steps(1, 5), EPOCH, EPOCH])
    lines.close()
    assert file.getvalue() == 2 * f"{epoch_line(EPOCH, 120)}\n"


def test_the_bar_shows_the_figures_and_where_a_resumed_run_stands() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=140, color_system=None)
    bar = LiveBar(console, steps=200, done=100, batch_size=64)
    bar.record(steps(101, 150))
    bar._bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert " 50 %" in shown
    assert " 75 %" in shown
    assert "loss 2.000  accuracy 25.0%  lr 0.1" in shown
    assert re.search(r"[\d,]+ pictures/s +\d+:\d\d|[\d,]+ pictures/s +--:--", shown)
    bar.record([EPOCH])
    bar.close()
    assert file.getvalue().rstrip("\n").endswith("\x1b[2K") or "\x1b[?25h" in file.getvalue()


def test_quiet_shows_nothing_and_records_everything(tmp_path: Any) -> None:
    file = io.StringIO()
    folder = RunFolder(tmp_path)
    console = Console(file=file, force_terminal=True, quiet=True)
    reporter = start_reporter(TrainConfig(), folder, console, steps=10, done=0)
    reporter.tell([*steps(1, 3), EPOCH])
    reporter.close()
    assert file.getvalue() == ""
    assert list(folder.read_events()) == [*steps(1, 3), EPOCH]


def test_a_missing_tensorboard_is_said_before_anything_is_written(
    quick: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    config = quick(tensorboard=True)
    with pytest.raises(ConfigError, match=r'pip install .*\[tensorboard\]"'):
        mobilenetv2.train(config)
    assert config.out is not None
    assert not config.out.exists()
