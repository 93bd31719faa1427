"""Several processes give what one gives."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mobilenetv2
from mobilenetv2.classifier import Classifier
from mobilenetv2.config import AugmentConfig, TrainConfig
from mobilenetv2.data.batches import Batches, LabelledPictures
from mobilenetv2.distributed import ALONE, Processes, Share, joined
from mobilenetv2.errors import ConfigError
from mobilenetv2.evaluation.evaluate import evaluate
from mobilenetv2.network.fast_dropout import FastDropout
from mobilenetv2.network.shared_batch import install, set_share
from mobilenetv2.settings import to_yaml
from mobilenetv2.training.checkpoints import Checkpoint

Quick = Callable[..., TrainConfig]
RELATIVE = 1e-5

# 15 training pictures: a batch of 10, which is divided, and one of 5, which is not.
RICH: dict[str, Any] = {
    "batch_size": 10, "ema": 0.5, "dropout": 0.5, "cutmix": 1.0, "mixup": 1.0, "shift": 0.2,
    "erase": 0.5, "lr": 0.01, "clip_norm": 0.5, "precision": "fp32", "device": "cpu",
    "width": 0.1,
}  # fmt: skip

PROGRAM = """
import os, signal, sys
from mobilenetv2.cli import main
from mobilenetv2.training.loop import Training
number, rank, step = (int(word) for word in os.environ.get("SEND", "0 0 0").split())
original = Training._train_step
def stepped(self, batch):
    outcome = original(self, batch)
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if number and self.history.steps == step and not restarts and self.processes.rank == rank:
        os.kill(os.getpid(), number)
    return outcome
Training._train_step = stepped
main(sys.argv[1:])
"""


def torchrun(
    tmp_path: Path, processes: int, *arguments: object, send: str = "", restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d",
         "--rdzv-endpoint=localhost:0", f"--nproc-per-node={processes}",
         f"--max-restarts={restarts}", str(program), *map(str, arguments)],
        env={**os.environ, "SEND": send or "0 0 0", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def written(config: TrainConfig, tmp_path: Path) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(to_yaml(config))
    return path


def distance(a: Path, b: Path) -> float:
    """Of two runs' last weights, relative."""
    ours, theirs = (Checkpoint.load(run / "last.pth.tar") for run in (a, b))
    worst = 0.0
    for first, second in ((ours.weights, theirs.weights), (ours.averaged, theirs.averaged)):
        assert first is not None
        assert second is not None
        flat = [
            torch.cat([state[key].double().flatten() for key in first]) for state in (first, second)
        ]
        worst = max(worst, float((flat[0] - flat[1]).norm() / flat[1].norm()))
    assert torch.equal(ours.random_state, theirs.random_state)
    return worst


def assert_close(a: Path, b: Path) -> None:
    assert distance(a, b) < RELATIVE
    events = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (a, b)
    ]
    assert len(events[0]) == len(events[1])
    for ours, theirs in zip(*events, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("event", "step", "epoch", "accuracy", "val_accuracy", "train_accuracy"):
            assert ours.get(key) == theirs.get(key), (key, ours, theirs)
        for key in ("loss", "val_loss", "train_loss", "lr"):
            assert ours.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fast_ops", ["off", "torch", "auto"])
def test_two_processes_give_what_one_gives(quick: Quick, tmp_path: Path, fast_ops: str) -> None:
    whole = quick("whole", **RICH, fast_ops=fast_ops)
    mobilenetv2.train(whole)
    two = quick("two", **RICH, fast_ops=fast_ops)
    done = torchrun(tmp_path, 2, "train", "--config", written(two, tmp_path))
    assert done.returncode == 0, done.stderr
    assert whole.out is not None
    assert two.out is not None
    assert_close(two.out, whole.out)
    # One alone speaks, and writes.
    assert done.stdout.count("validation accuracy") == 1
    assert done.stdout.count("epoch 2/2") == 1
    result = json.loads((two.out / "result.json").read_text())
    assert result["steps"] == 4


@pytest.mark.slow
def test_any_number_of_processes_and_a_change_of_it(quick: Quick, tmp_path: Path) -> None:
    whole = quick("whole", **RICH)
    mobilenetv2.train(whole)
    assert whole.out is not None
    three = quick("three", **{**RICH, "batch_size": 15})
    alone = quick("alone", **{**RICH, "batch_size": 15})
    mobilenetv2.train(alone)
    done = torchrun(tmp_path, 3, "train", "--config", written(three, tmp_path))
    assert done.returncode == 0, done.stderr
    assert alone.out is not None
    assert three.out is not None
    assert_close(three.out, alone.out)
    # Two are stopped by a signal that one of them gets, and a single one goes on.
    cut = quick("cut", **RICH)
    assert cut.out is not None
    done = torchrun(
        tmp_path, 2, "train", "--config", written(cut, tmp_path), send=f"{int(signal.SIGTERM)} 1 3"
    )
    assert done.returncode != 0
    assert done.stderr.count("stopped by SIGTERM after step 3; everything is saved") == 1
    assert Checkpoint.load(cut.out / "last.pth.tar").history["steps"] == 3
    mobilenetv2.resume(cut.out)
    assert_close(cut.out, whole.out)
    # One is stopped, and two go on.
    back = quick("back", **RICH, checkpoint_every="1steps")
    assert back.out is not None
    done = torchrun(
        tmp_path, 1, "train", "--config", written(back, tmp_path), send=f"{int(signal.SIGKILL)} 0 3"
    )
    assert done.returncode != 0
    done = torchrun(tmp_path, 2, "train", "--resume", back.out)
    assert done.returncode == 0, done.stderr
    assert_close(back.out, whole.out)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_comes_back(quick: Quick, tmp_path: Path, rank: int) -> None:
    settings = {**RICH, "checkpoint_every": "1steps"}
    ends = []
    for name, send in (("whole", ""), ("killed", f"{int(signal.SIGKILL)} {rank} 3")):
        config = quick(name, **settings)
        done = torchrun(
            tmp_path, 2, "train", "--config", written(config, tmp_path), send=send, restarts=2
        )
        assert done.returncode == 0, done.stderr
        assert config.out is not None
        ends.append(config.out)
    assert distance(*ends) == 0
    assert_close(*ends)


@pytest.mark.slow
def test_local_norms_and_a_missing_folder(quick: Quick, tmp_path: Path) -> None:
    local = quick("local", **RICH, sync_norm=False, fast_ops="auto")
    done = torchrun(tmp_path, 2, "train", "--config", written(local, tmp_path))
    assert done.returncode == 0, done.stderr
    nowhere = local.model_copy(update={"out": None})
    done = torchrun(tmp_path, 2, "train", "--config", written(nowhere, tmp_path))
    assert done.returncode != 0
    assert "torchrun: name the run folder (--out FOLDER)" in done.stderr


@pytest.mark.slow
def test_evaluation_is_the_same_to_the_last_digit(quick: Quick, tmp_path: Path) -> None:
    config = quick("run", **RICH)
    mobilenetv2.train(config)
    reports = []
    for count in (1, 7):  # more than there are batches: some have nothing to do
        report = tmp_path / f"report {count}"
        done = torchrun(tmp_path, count, "evaluate", config.out, "--report", report)
        assert done.returncode == 0, done.stderr
        reports.append((report / "evaluation.json").read_text())
        assert done.stdout.count("accuracy") == 1
    assert reports[0] == reports[1]


@pytest.mark.slow
def test_predictions_are_the_same_and_in_order(
    quick: Quick, few_pictures: Path, tmp_path: Path
) -> None:
    config = quick("run", **RICH)
    mobilenetv2.train(config)
    (tmp_path / "broken.png").write_bytes(b"x")
    outputs = []
    for count in (1, 3):
        done = torchrun(
            tmp_path, count, "predict", config.out, few_pictures, tmp_path / "broken.png"
        )
        assert done.stderr.count("broken.png") == 1
        outputs.append(done.stdout)
        table = tmp_path / f"{count}.csv"
        done = torchrun(tmp_path, count, "predict", config.out, few_pictures, "--csv", table)
        assert done.returncode == 0, done.stderr
        outputs.append(table.read_text())
    assert outputs[0] == outputs[2]
    assert outputs[1] == outputs[3]
    assert len(outputs[0].splitlines()) == 18


# ------------------------------------------------------------------- parts, in one process


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_every_picture_of_a_batch_is_in_one_part(count: int) -> None:
    for total in (*range(4 * count, 60), 128, 1001):
        parts = [Processes(rank, count).share(total) for rank in range(count)]
        places = []
        for part in parts:
            assert part is not None
            assert len(part.positions) >= 3
            assert torch.equal(part.positions.flip(0), total - 1 - part.positions)
            places += part.positions.tolist()
        assert sorted(places) == list(range(total))
    assert Processes(0, count).share(4 * count - 1) is None
    assert ALONE.share(1000) is None


@pytest.mark.parametrize("config", [AugmentConfig(mixup=1), AugmentConfig(cutmix=1, shift=0.3)])
def test_the_parts_are_the_batch(config: AugmentConfig) -> None:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (43, 1, 8, 8), dtype=torch.uint8, generator=draw)
    pictures = LabelledPictures(pixels, torch.arange(43))

    def batches(processes: Processes) -> Iterator[Any]:
        return Batches(pictures, (8, 8), 17, config, 3, processes).epoch(2)

    parts = zip(*(batches(Processes(rank, 3)) for rank in range(3)), strict=True)
    for whole, some in zip(batches(ALONE), parts, strict=True):
        for part in some:
            here = slice(None) if part.share is None else part.share.positions
            torch.testing.assert_close(part.pictures.float(), whole.pictures[here].float())
            assert torch.equal(part.labels, whole.labels[here])
            assert torch.equal(part.other_labels, whole.other_labels[here])
            assert part.weight == whole.weight


@pytest.fixture
def _group_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group_of_one")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_norm_of_a_shared_batch_is_pytorchs(momentum: float | None) -> None:
    torch.manual_seed(0)
    stock, ours = (nn.Sequential(nn.BatchNorm2d(5, momentum=momentum)) for _ in range(2))
    install(ours, sync_norms=True)
    assert type(ours[0]) is not nn.BatchNorm2d
    for network in (stock, ours):
        with torch.no_grad():
            network[0].weight.copy_(torch.linspace(0.5, 2, 5))  # type: ignore[operator,union-attr]
            network[0].bias.copy_(torch.linspace(-1, 1, 5))  # type: ignore[operator,union-attr]
    set_share(ours, Share(torch.arange(6), 6))
    for _ in range(3):
        x = torch.randn(6, 5, 4, 3) * 3 + 100
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        outputs = [network(one) for network, one in zip((stock, ours), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-4)
        g = torch.randn_like(x)
        for output in outputs:
            output.backward(g)
        assert inputs[0].grad is not None
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(
        [*stock.named_parameters(), *stock.named_buffers()],
        [*ours.parameters(), *ours.buffers()],
        strict=True,
    ):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5, msg=name)
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours.eval()(x), stock.eval()(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [nn.Dropout, FastDropout])
def test_dropout_of_a_shared_batch_is_that_of_one_process(
    kind: torch.dtype, dropout: type[nn.Dropout]
) -> None:
    network = nn.Sequential(dropout(0.3))
    x = torch.randn(12, 40, dtype=kind)
    torch.manual_seed(5)
    whole = network(x)
    state = torch.get_rng_state()
    install(network, sync_norms=True)
    for rank in range(2):
        share = Processes(rank, 2).share(12)
        assert share is not None
        set_share(network, share)
        torch.manual_seed(5)
        assert torch.equal(network(x[share.positions]), whole[share.positions])
        assert torch.equal(torch.get_rng_state(), state)
    set_share(network, None)
    torch.manual_seed(5)
    assert torch.equal(network(x), whole)


class Turn(Processes):
    """Collects what each of several processes would have brought, one after the other."""

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        sums = COLLECTED.setdefault(tensor.dtype, torch.zeros_like(tensor))
        sums += tensor
        return sums


COLLECTED: dict[torch.dtype, torch.Tensor] = {}


@pytest.mark.parametrize("count", [1, 2, 7])
def test_evaluation_in_turns(small_classifier: Classifier, count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (45, 1, 16, 16), dtype=torch.uint8, generator=draw)
    pictures = LabelledPictures(pixels, torch.arange(45) % 3)
    expected = evaluate(small_classifier, pictures, batch_size=4)
    COLLECTED.clear()
    for rank in range(count):
        found = evaluate(small_classifier, pictures, 4, Turn(rank, count))
    for name, value in vars(expected).items():
        assert (
            (getattr(found, name) == value).all()
            if hasattr(value, "all")
            else (getattr(found, name) == value)
        ), name


@pytest.mark.parametrize(
    "variables", [{"WORLD_SIZE": "2", "RANK": "1"}, {"WORLD_SIZE": "two"}, {"RANK": ""}]
)
def test_others_that_cannot_be_met_are_told_in_words(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="start all of them with torchrun"), joined():
        pass


def test_restarts_need_a_folder(quick: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(ConfigError, match="name the run folder"):
        mobilenetv2.train(quick().model_copy(update={"out": None}))
    first = mobilenetv2.train(quick())  # restarted before it had begun
    assert first["steps"] == 6
    # A process that dies on its way out has all of them started again.
    assert mobilenetv2.train(quick()) == first
    with pytest.raises(ConfigError, match="holds another run"):
        mobilenetv2.train(quick(label_smoothing=0.2))


def test_a_rank_without_others_is_the_first(
    quick: Quick, monkeypatch: pytest.MonkeyPatch, run_cli: Any
) -> None:
    """A cluster's leftover must not make a run that shows nothing and saves nothing."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    config = quick(epochs=1)
    assert mobilenetv2.train(config)["run"] == str(config.out)
    code, out, _ = run_cli("inspect", config.out)
    assert (code, "2 classes" in out) == (0, True)
    assert run_cli("predict", "missing", "missing")[2]
