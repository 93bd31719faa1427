"""The documentation: its commands are understood and do run, its links and pictures exist."""

import ast
import json
import math
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilenetv2.cli import arguments as command_arguments
from mobilenetv2.cli.commands import COMMANDS, Command
from mobilenetv2.command_config import CompareConfig, InspectConfig
from mobilenetv2.config import Section
from mobilenetv2.errors import WorkFailed
from mobilenetv2.settings import parse_settings, validate
from mobilenetv2.training import recipes  # noqa: F401  (whole before its parts are replaced)
from mobilenetv2.training.optimizers import build_optimizer
from mobilenetv2.training.rmsprop import RMSprop
from mobilenetv2.training.schedules import schedule_factor

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ENGLISH, CHINESE = DOCS / "tutorial/en", DOCS / "tutorial/zh"
TUTORIAL = ("index", "1-validate", "2-watch", "3-optimizer", "4-schedules", "5-label-smoothing",
            "6-save-and-load", "7-step-by-step", "photos")  # fmt: skip
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
PAIRS = [
    ("README.md", "README.zh-CN.md"),
    ("docs/index.md", "docs/index.zh-CN.md"),
    ("docs/shipping.md", "docs/shipping.zh-CN.md"),
    ("docs/imagenet.md", "docs/imagenet.zh-CN.md"),
] + [(f"docs/tutorial/en/{page}.md", f"docs/tutorial/zh/{page}.md") for page in TUTORIAL]
QUICK = ("--epochs", "2", "--width", "0.1", "--fast-ops", "off")
"""Added to each `train`: what is tested is that the commands work, not what they reach."""

Run = Callable[..., tuple[int, str, str]]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.M)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `mobilenetv2 …` in lines of a shell, without comments."""
    for line in text.splitlines():
        for part in line.split("#")[0].split("&&"):
            words = shlex.split(part)
            if words and words[0] == "mobilenetv2":
                yield words[1:]


def shown_commands(page: Path) -> list[list[str]]:
    """Those in console blocks."""
    return [words for block in blocks(page, "console") for words in commands(block)]


def mentioned_commands(page: Path) -> list[list[str]]:
    """Those in running text, such as `mobilenetv2 train --epochs 3`."""
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    spans = re.findall(r"`(mobilenetv2 [a-z][^`]*)`", " ".join(prose.split()))
    return [words for span in spans for words in commands(span)]


def links(page: Path) -> list[str]:
    """Where links and pictures lead, inside the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def saved_settings(page: Path) -> dict[str, str]:
    """The YAML files that a page asks its reader to save, by their names."""
    text = page.read_text("utf-8")
    found = re.findall(r"`(\w+\.yaml)`[:：]\n\n```yaml\n(.*?)^```", text, re.DOTALL | re.M)
    return dict(found)


def pictures(page: Path) -> list[str]:
    return [Path(link).name for link in links(page) if link.endswith(".png")]


ALL_COMMANDS = sorted(
    {
        shlex.join(words)
        for page in PAGES
        for words in shown_commands(page) + mentioned_commands(page)
        if words[0] != "COMMAND"
    }
)
SAVED = {name: text for page in PAGES for name, text in saved_settings(page).items()}


def test_there_is_something_to_check() -> None:
    assert len(ALL_COMMANDS) > 25
    assert {f"docs/tutorial/en/{page}.md" for page in TUTORIAL} <= {name_of(p) for p in PAGES}


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_command_is_understood(
    command: str, run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Up to the point where the work would begin."""
    monkeypatch.chdir(tmp_path)
    for name, settings in SAVED.items():
        Path(name).write_text(settings, "utf-8")

    def reach(*_: Any, **__: Any) -> Any:
        raise WorkFailed("understood")

    word, *arguments = shlex.split(command)
    assert word in COMMANDS
    for work in (
        "training.train.train",
        "training.train.resume",
        "training.train.run_range_test",
        "training.load.load",
        "data.picture_tree.list_pictures",
    ):
        monkeypatch.setattr(f"mobilenetv2.{work}", reach)
    monkeypatch.setattr(command_arguments, "_settings_of", lambda run: {})  # the run is not there
    if word in ONLY_PARSED:
        monkeypatch.setitem(COMMANDS, word, Command(partial(parse_only, word), ""))
    code, out, error = run_cli(word, *arguments)
    if "--help" in arguments:
        assert (code, error) == (0, "")
        assert f"mobilenetv2 {word}" in out
    else:
        assert (code, error.strip()) == (1, "mobilenetv2: understood")


# What they do depends on what is there.
ONLY_PARSED: dict[str, type[Section]] = {"inspect": InspectConfig, "compare": CompareConfig}


def parse_only(word: str, arguments: list[str]) -> int:
    command_arguments.parse(word, ONLY_PARSED[word], arguments)
    raise WorkFailed("understood")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_and_picture_exists(page: Path) -> None:
    missing = [link for link in links(page) if not (page.parent / link.split("#")[0]).exists()]
    assert not missing


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_show_the_same(english: str, chinese: str) -> None:
    one, other = ROOT / english, ROOT / chinese
    assert shown_commands(one) == shown_commands(other)
    assert pictures(one) == pictures(other)
    # Comments are in the language of the page.
    assert [ast.dump(ast.parse(block)) for block in blocks(one, "python")] == [
        ast.dump(ast.parse(block)) for block in blocks(other, "python")
    ]
    assert re.findall(r"^#+ ", one.read_text("utf-8"), re.M) == re.findall(
        r"^#+ ", other.read_text("utf-8"), re.M
    )
    for page, twin in ((one, other), (other, one)):
        first = next(link for link in links(page) if link.endswith(".md"))
        assert (page.parent / first).resolve() == twin


@pytest.mark.parametrize("page", ["imagenet.md", "imagenet.zh-CN.md"])
def test_the_published_recipes_are_those_that_were_published(page: str) -> None:
    """Numbers of the paper's section 6.1, of its authors' flags, and of torchvision's recipe."""
    paper, torchvisions = (
        validate(parse_settings(text, name), name)
        for name, text in saved_settings(DOCS / page).items()
    )
    pictures = 1_281_167
    steps_per_epoch = math.ceil(pictures / paper.batch_size)
    assert paper.batch_size == 96
    assert paper.epochs * steps_per_epoch == pytest.approx(5.5e6, rel=0.002)
    factor = schedule_factor(paper.schedule, paper.epochs, steps_per_epoch)
    assert factor(0) == 1
    assert factor(round(2.5 * steps_per_epoch)) == pytest.approx(0.98, rel=1e-4)
    weights = [torch.nn.Parameter(torch.ones(2, 2))]
    made = build_optimizer(torch.nn.ParameterList(weights), paper.optimizer, 0.045)
    assert isinstance(made, RMSprop)
    (group,) = made.param_groups
    assert (paper.optimizer.lr, group["momentum"], group["epsilon"]) == (0.045, 0.9, 1.0)
    assert (group["weight_decay"], paper.label_smoothing, paper.ema) == (4e-5, 0.1, 0.9999)
    network, augment = paper.network, paper.augment
    assert (network.dropout, network.norm_momentum, network.norm_eps) == (0.2, 0.003, 1e-3)
    assert (network.padding, paper.transfer.weights) == ("keras", "none")
    assert (augment.crop, augment.flip, augment.train_size) == (0.05, True, None)

    assert (torchvisions.batch_size, torchvisions.epochs) == (128 * 8, 600)
    assert (torchvisions.optimizer.optimizer, torchvisions.optimizer.lr) == ("sgd", 0.5)
    assert (torchvisions.schedule.schedule, torchvisions.optimizer.weight_decay) == ("cosine", 2e-5)
    augment, data = torchvisions.augment, torchvisions.data
    assert (augment.trivial, augment.erase, augment.mixup, augment.cutmix) == (True, 0.1, 0.2, 1)
    assert (augment.train_size, data.image_size, data.resize) == (176, 224, 232)
    assert (augment.crop, augment.flip) == (0.08, True)
    assert (torchvisions.label_smoothing, torchvisions.schedule.warmup_epochs) == (0.1, 5)
    assert (torchvisions.optimizer.nesterov, torchvisions.sync_norm) == (False, False)
    # theirs: 2e-5 of the newest, every 32 steps, scaled by batch × 32 / epochs
    assert 1 - torchvisions.ema == pytest.approx(2e-5 * 1024 * 32 / 600 / 32, rel=0.15)
    assert torchvisions.transfer.weights == "none"


def test_pictures_are_small_used_and_made_by_a_command_of_the_tutorial() -> None:
    made = runpy.run_path(str(DOCS / "make_pictures"))["PICTURES"]
    of_the_page = runpy.run_path(str(DOCS / "make_page_pictures"))["PICTURES"]
    files = {file.name for file in (DOCS / "pictures").iterdir()}
    assert {name for names in made.values() for name in names.values()} | set(of_the_page) == files
    assert {name for page in PAGES for name in pictures(page)} == files
    assert all(file.stat().st_size <= 150_000 for file in (DOCS / "pictures").iterdir())
    shown = {shlex.join(words) for page in ENGLISH.glob("*.md") for words in shown_commands(page)}
    assert {command.removeprefix("mobilenetv2 ") for command in made} <= shown


# ------------------------------------------------------------------ the tutorial, really run


@pytest.mark.slow
def test_the_tutorial_runs_from_its_first_page_to_its_last(tmp_path: Path) -> None:
    """Every command and every Python block, in reading order, in one folder, as a reader would."""
    pages = [ENGLISH / f"{page}.md" for page in TUTORIAL]
    resumed = {
        words[words.index("--resume") + 1]
        for page in pages
        for words in shown_commands(page)
        if "--resume" in words
    }
    for page in pages:
        text = page.read_text("utf-8")
        for kind, block in re.findall(r"^```(console|python)\n(.*?)^```", text, re.DOTALL | re.M):
            if kind == "python":
                execute([sys.executable, "-W", "error", "-c", block], tmp_path)
                continue
            for words in commands(block):
                run_shortened(words, tmp_path, resumed)
    result = json.loads((tmp_path / "runs/digits/result.json").read_text())
    assert result["data"] == "digits"
    curves = (tmp_path / "runs/long/metrics.jsonl").read_text().splitlines()
    steps = [event["step"] for event in map(json.loads, curves) if event["event"] == "step"]
    assert steps == list(range(1, 2 * 21 + 1))


def run_shortened(words: list[str], folder: Path, resumed: set[str]) -> None:
    """Run a command with little to do; stop it with Ctrl-C where a later one goes on with it."""
    program = [sys.executable, "-m", "mobilenetv2"]
    if words[0] != "train" or "--resume" in words:
        execute([*program, *words], folder)
        return
    if "--epochs" in words:
        at = words.index("--epochs")
        words = words[:at] + words[at + 2 :]
    out = words[words.index("--out") + 1] if "--out" in words else None
    program += [*words, *QUICK]
    if out not in resumed:
        execute(program, folder)
        return
    process = subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True)
    metrics = folder / str(out) / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130, error
    assert f"--resume {out}" in error


def execute(program: list[str], folder: Path) -> None:
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(program)}\n{done.stdout}\n{done.stderr}"
