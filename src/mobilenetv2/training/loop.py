"""The training loop.

Read :meth:`Training.run` first: an epoch is many steps, then a validation, then a checkpoint. Each
of these is one short method below it. Everything the loop needs was built before it starts.
"""

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console

from mobilenetv2 import __version__
from mobilenetv2.classifier import Classifier
from mobilenetv2.data.augment import Batch
from mobilenetv2.data.batches import LabelledPictures
from mobilenetv2.distributed import ALONE, Processes
from mobilenetv2.errors import first_line
from mobilenetv2.evaluation.evaluate import Evaluation, evaluate
from mobilenetv2.machine_memory import ran_out
from mobilenetv2.runtimes.engine import with_runtime
from mobilenetv2.training import portions
from mobilenetv2.training.announce import announcement, show_first_batch
from mobilenetv2.training.checkpoint_timer import CheckpointTimer
from mobilenetv2.training.checkpoints import Checkpoint, save_archive
from mobilenetv2.training.find_lr import MOST_STEPS, STEPS, find_lr_of
from mobilenetv2.training.finish import deliver, measure
from mobilenetv2.training.finite import non_finite, require_finite
from mobilenetv2.training.frozen_features import FrozenFeatures, why_pytorch_looks
from mobilenetv2.training.gradients import Gradients, RecordedGradients
from mobilenetv2.training.head import fit_first_head
from mobilenetv2.training.memory import check_memory, largest_that_fits, too_little_memory
from mobilenetv2.training.optimizers import clip_gradient
from mobilenetv2.training.parallel import ParallelTraining, StepLoss
from mobilenetv2.training.reporter import Reporter, StepOutcome, start_reporter
from mobilenetv2.training.run_folder import RunFolder
from mobilenetv2.training.signals import Stopped, StopRequest
from mobilenetv2.training.start import Start
from mobilenetv2.training.state import RunState
from mobilenetv2.training.transfer import set_train_mode


class Training(RunState):
    """One run: its state, and the loop that drives it.

    Making one says what will be done, and brings the network to where its first step begins: a head
    for pretrained weights, and a learning rate where none was named.
    """

    def __init__(
        self,
        begun: Start,
        folder: RunFolder,
        console: Console | None = None,
        stop: StopRequest | None = None,
        processes: Processes = ALONE,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.folder = folder
        self.processes = processes
        self.console = console if console and processes.is_first else Console(quiet=True)
        self.stop = stop or StopRequest(folder.go_on)
        check_memory(begun)
        self.batches = portions.batches(begun, processes)
        if begun.tuning.head_only:
            size = (begun.data.preprocessing.height, begun.data.preprocessing.width)
            self.train_sample = begun.data.train.centre(size)  # all, and not copied
        else:
            self.train_sample = portions.to_measure(begun.data)
        for line in announcement(begun, self.batches.steps_per_epoch, folder):
            self._say(line)
        if begun.tuning.head_only:
            reason = why_pytorch_looks(begun)
        else:
            reason = begun.device.why_pytorch_measures(begun.classifier)
        # All by the same, or figures would depend on who measured which batch.
        self.measured_by = "torch" if processes.largest(int(reason is not None)) else "cpp"
        if reason:
            self._say(f"validated by PyTorch: {reason}")
        frozen = FrozenFeatures(begun.classifier, self.measured_by)
        self.features = frozen if begun.tuning.head_only else None
        started = time.perf_counter()
        head_seen = self._solve_head(begun, frozen) if checkpoint is None else 0
        head_seconds = time.perf_counter() - started
        lr = self._peak_lr(begun) if checkpoint is None else checkpoint.lr
        super().__init__(begun, lr, self.batches.steps_per_epoch)
        self.classifier = replace(self.classifier, training={"measured_by": self.measured_by})
        self.history.training_seconds += head_seconds
        self.history.pictures += head_seen
        self.parallel = ParallelTraining(
            self.classifier, processes, self.config.sync_norm, portions.class_weight(begun)
        )
        self.gradients = self._gradients()
        self.timer = CheckpointTimer(self.config.checkpoint_every)
        self.is_saved = checkpoint is not None
        if checkpoint is not None:
            self.restore(checkpoint, str(folder.last))
            if not begun.tuning.head_only:
                self._say(f"goes on in epoch {self.epoch + 1}, after step {self.history.steps:,}")
            self.timer.saved(self.history.steps)
            if processes.is_first:
                self.folder.rewind_events(self.history.steps, self.epoch)

    def run(self) -> dict[str, Any]:
        """Train to the end, measure what came out, and write it down."""
        if not self.is_saved:
            self._save()
            if self.processes.is_first and not self.tuning.head_only:
                show_first_batch(self.batches, self.classifier.labels, self.folder)
        steps = self.config.epochs * self.batches.steps_per_epoch
        folder = self.folder if self.processes.is_first else None
        reporter = start_reporter(self.config, folder, self.console, steps, self.history.steps)
        try:
            while self.epoch < self.config.epochs:
                if not self.tuning.head_only:
                    self._train_epoch(reporter)
                self._validate_epoch(reporter)
            reporter.close()
            result = self._finish() if self.processes.is_first else {}
            return self.processes.from_first(result)
        except Stopped as stopped:
            raise self._stopped(reporter) from stopped
        finally:
            reporter.close()

    def _gradients(self) -> Gradients:
        """How a batch becomes gradients: recorded and replayed where the GPU waits for launches."""
        loss_of = partial(
            self.parallel.loss, device=self.device, label_smoothing=self.config.label_smoothing
        )
        # Of several processes, each would compile on all cores.
        alone = self.processes.count == 1
        kind = RecordedGradients if self.device.recorded else Gradients
        return kind(self.network, loss_of, self.device.compile_ahead if alone else None)

    def _solve_head(self, begun: Start, frozen: FrozenFeatures) -> int:
        """Pretrained weights get a head for these classes before anything else moves.

        Returns:
            Pictures that were looked at.
        """
        if not begun.tuning.pretrained:
            return 0
        pictures = self.train_sample if self.features else portions.for_first_head(begun.data)
        if self.processes.is_first:
            with self.stop.at_once():
                words = fit_first_head(begun, pictures, frozen)
            self._say(words)
        self.processes.copy_from_first(begun.classifier.network.parameters())
        return len(pictures)

    def _train_epoch(self, reporter: Reporter) -> None:
        set_train_mode(self.network, self.tuning)
        started = time.perf_counter()
        for batch in self.batches.epoch(self.epoch, first_step=self.step):
            reporter.step(self._train_step(batch))
            self.history.training_seconds += time.perf_counter() - started
            self.stop.check()
            if self.timer.is_due(self.history.steps):
                reporter.flush()
                self._save()
            started = time.perf_counter()
        reporter.flush()  # waits for what a GPU has still to do
        self.history.training_seconds += time.perf_counter() - started

    def _train_step(self, batch: Batch) -> StepOutcome:
        lr = float(self.schedule.get_last_lr()[0])
        loss = self._gradient_of(batch)
        clip_gradient(self.network, self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update()
        self.step += 1
        self.history.steps += 1
        self.history.pictures += loss.count
        return StepOutcome(self.epoch + 1, self.history.steps, lr, loss.count, loss.mean, loss.hits)

    def _gradient_of(self, batch: Batch) -> StepLoss:
        try:
            return self.gradients.of(batch)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            reason = first_line(error)
        # Not in the clause above: there the error holds what the failed step had in memory.
        self.gradients = self._gradients()
        alone = self.processes.count == 1
        fits = largest_that_fits(batch, self.gradients.of) if alone else None
        raise too_little_memory(reason, self.config.batch_size, batch.labels.device, fits)

    def _validate_epoch(self, reporter: Reporter) -> None:
        """Measure, remember the one to keep, tell, save; only a good epoch is ever saved."""
        self.parallel.agree(self.network, self.averaged)
        with self.stop.at_once():
            classifier = self._to_measure()
            train = self._measure(classifier, self.train_sample)
            val = self._measure(classifier, self.data.val)
        lr = float(self.schedule.get_last_lr()[0])
        if not math.isfinite(val.loss):
            step, epoch = self.history.steps, self.epoch + 1
            raise non_finite("the validation loss", val.loss, step, epoch, lr)
        self.epoch, self.step = self.epoch + 1, 0
        history = self.history
        # Of equally good epochs the later one counts: its learning rate was lower, and on a small
        # validation set an early tie is luck.
        is_best = self.config.keep == "last" or val.accuracy >= history.best_accuracy
        if is_best:
            history.best_epoch = self.epoch
            history.best_accuracy = val.accuracy
        self.tick()
        event = {
            "event": "epoch",
            "epoch": self.epoch,
            "step": self.history.steps,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "val_loss": val.loss,
            "val_accuracy": val.accuracy,
            "gap": train.accuracy - val.accuracy,
            "lr": lr,
            "seconds": history.seconds,
            "images_per_second": history.pictures / history.training_seconds,
        }
        reporter.tell([event])
        self._save(is_best)

    def _stopped(self, reporter: Reporter) -> Stopped:
        """Save where the run is, and say so."""
        reporter.flush()
        self._save()
        return Stopped(f"after step {self.history.steps}; everything is saved")

    def _save(self, is_best: bool = False) -> None:
        """Write this moment down as the last one, and as the best one if it is.

        Raises:
            NonFiniteLoss: weights or statistics left the numbers; what is saved stays.
        """
        networks = [one for one in (self.network, self.averaged) if one is not None]
        lr = float(self.schedule.get_last_lr()[0])
        require_finite(networks, self.history.steps, self.epoch + bool(self.step), lr)
        if self.processes.is_first:
            self.folder.flush_events()
            archive = self.to_checkpoint().to_archive()  # takes longer than writing it
            # The best one first: a run that is cut between the two comes here again. The other way
            # round the epoch would be over, and an older best one be delivered.
            if is_best:
                save_archive(archive, self.folder.best)
            save_archive(archive, self.folder.last, self.folder.previous)
            self.folder.replaced.forget()
        self.timer.saved(self.history.steps)
        self.is_saved = True

    def _finish(self) -> dict[str, Any]:
        made = {
            "data": self.config.data.data,
            "epochs": self.config.epochs,
            "steps": self.history.steps,
            "lr": self.lr,
            "kept": self.config.keep,
            "seed": self.config.seed,
            "device": str(self.device.device),
            "precision": self.device.precision,
            "fast_ops": self.device.fast_ops.kind,
            "measured_by": self.measured_by,
            "compiled": self.device.compiled,
            "cuda_graphs": self.device.recorded,
            "weights": self.config.transfer.weights,
            "frozen_blocks": self.tuning.frozen_blocks,
            "version": __version__,
        }
        with self.stop.at_once():
            classifier, notes = deliver(self.folder, made)
            for note in notes:
                self._say(note)
            figures = measure(
                classifier, self.data, self.train_sample, self.folder, self.device,
                self.measured_by, self.features,
            )  # fmt: skip
        self.tick()
        speed = {
            "seconds": self.history.seconds,
            "training_seconds": self.history.training_seconds,
            "images_per_second": self.history.pictures / self.history.training_seconds,
        }
        result = {**classifier.training, **speed, **figures}
        self.folder.append_events([{"event": "end", "step": self.history.steps, **result}])
        self.folder.write_result(result)
        self.folder.previous.unlink(missing_ok=True)
        return result | {"run": str(self.folder.path)}

    def _to_measure(self) -> Classifier:
        """What would be delivered now; compiled kernels copy its weights."""
        classifier = self.classifier.with_network(self.averaged or self.network)
        return with_runtime(classifier, self.measured_by)

    def _measure(self, classifier: Classifier, pictures: LabelledPictures) -> Evaluation:
        if self.features is not None:
            return self.features.evaluate(classifier, pictures)
        return evaluate(classifier, pictures, processes=self.processes)

    def _peak_lr(self, begun: Start) -> float:
        lr = begun.config.optimizer.lr
        if lr != "auto":
            return lr
        if begun.tuning.head_only:  # solved without steps, so without a rate
            return 0.0
        found = 0.0
        if self.processes.is_first:
            with self.stop.at_once():
                # The other processes wait for the answer, and do not wait for ever.
                test = find_lr_of(begun, STEPS if self.processes.count > 1 else MOST_STEPS)
            self._say(f"learning rate {test.suggestion:g}: {test.reason}")
            found = test.suggestion
        return self.processes.from_first(found)

    def _say(self, line: str) -> None:
        say(self.console, line)


def say(console: Console, line: str) -> None:
    """A line for the user, as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
