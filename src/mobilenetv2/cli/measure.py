"""``evaluate``: known labels against what a classifier says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobilenetv2.cli.arguments import made, parse
from mobilenetv2.cli.runtime import in_runtime
from mobilenetv2.cli.voice import remark, teller
from mobilenetv2.command_config import EvaluateConfig
from mobilenetv2.config import DataConfig
from mobilenetv2.errors import DataError
from mobilenetv2.terminal import print_evaluation

if TYPE_CHECKING:
    from mobilenetv2.classifier import Classifier
    from mobilenetv2.data.sources import DataSet
    from mobilenetv2.distributed import Processes


def evaluate_command(arguments: list[str]) -> int:
    """Measure a classifier on pictures with known labels."""
    config = parse("evaluate", EvaluateConfig, arguments)
    from mobilenetv2.distributed import joined

    with joined() as processes:
        return _evaluate_with(config, processes)


def _evaluate_with(config: EvaluateConfig, processes: "Processes") -> int:
    """Processes take turns with the batches; the first one prints and writes."""
    from mobilenetv2.data.sources import load_data, load_for_measuring
    from mobilenetv2.evaluation import plots
    from mobilenetv2.evaluation.evaluate import evaluate
    from mobilenetv2.evaluation.mistakes import write_mistakes
    from mobilenetv2.files import write_text
    from mobilenetv2.training.device import find_device
    from mobilenetv2.training.load import load, own_data

    classifier = load(config.model, remark)
    classifier.network.to(find_device(config.machine.device))
    wanted = classifier.preprocessing
    runtime = config.machine.runtime
    if config.data is None:
        if runtime == "auto":  # the run's numbers to the last digit
            runtime = _measured_by(classifier, processes)
        places = config.source.model_dump(exclude={"data_dir"})
        data = own_data(config.model, config.source.data_dir).model_copy(update=places)
        own = load_data(data, wanted, teller(config.quiet))
        if own.classes != classifier.labels:
            raise DataError(
                f"{own.name}: its classes are no longer those that {config.model} was trained on "
                f"({', '.join(own.classes[:5])}, … now; {', '.join(classifier.labels[:5])}, … then)"
            )
        if processes.is_first:
            _tell_what_changed(own, config.model)
        sets = {"validation": own.val} | ({"test": own.test} if own.test else {})
    else:
        data = DataConfig(data=config.data, **config.source.model_dump())
        tell = teller(config.quiet)
        sets = dict([load_for_measuring(data, wanted, classifier.labels, tell, remark)])
    if config.report:
        made("--report", config.report)
    report: dict[str, Any] = {}
    most = max(map(len, sets.values()))
    classifier = in_runtime(classifier, runtime, most, config.quiet)
    for name, pictures in sets.items():
        evaluation = evaluate(classifier, pictures, processes=processes)
        if not processes.is_first:
            continue
        report[name] = evaluation.summary(classifier.labels)
        print_evaluation(name, report[name], config.quiet)
        if config.report:
            figure = plots.confusion(evaluation, classifier.labels)
            plots.save(figure, config.report / f"{name}-confusion.png")
            figure = plots.mistakes(evaluation, pictures, classifier.labels)
            plots.save(figure, config.report / f"{name}-mistakes.png")
            table = config.report / f"{name}-mistakes.csv"
            write_mistakes(table, evaluation, pictures, classifier.labels)
    if config.report and processes.is_first:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_text(config.report / "evaluation.json", text)
    return 0


def _measured_by(classifier: "Classifier", processes: "Processes") -> Literal["torch", "cpp"]:
    """What measured a run while it was trained; PyTorch where some process cannot have that."""
    from mobilenetv2.runtimes.engine import obstacle

    if classifier.training.get("measured_by") != "cpp":
        return "torch"
    reason = obstacle("cpp", classifier)
    if reason:
        remark(f"measured by PyTorch, and not as the run was, so last digits may differ: {reason}")
    return "torch" if processes.largest(int(bool(reason))) else "cpp"


def _tell_what_changed(own: "DataSet", model: Path) -> None:
    """Words where pictures are not counted, or are not as many as the run was measured on."""
    from mobilenetv2.training.load import own_counts

    if own.examination is not None:
        measured = ("val" if "val" in own.examination.splits else "train", "test")
        unreadable = [p for p in own.examination.pictures if p.split in measured and not p.usable]
        if unreadable:
            remark(
                f"{own.name}: {len(unreadable):,} of its pictures cannot be read, so no figure "
                f"counts them; `mobilenetv2 inspect {own.name}` shows which"
            )
        if strays := own.examination.strays_in_words():
            remark(strays)
    labels = (own.val if own.test is None else own.test).labels
    then, now = own_counts(model), labels.bincount(minlength=len(own.classes)).tolist()
    if then is not None and then != now:
        remark(
            f"{own.name}: no longer holds the pictures that {model} was measured on, so these "
            "figures are of others, perhaps of some that it was trained on"
        )
