"""The settings of the commands that use a finished classifier, described once.

As in :mod:`mobilenetv2.config`, a field's name is its flag, and its docstring is its help.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from tyro.conf import FlagCreatePairsOff, Positional, arg

from mobilenetv2.config import (
    DeviceConfig,
    Fraction,
    NetworkConfig,
    OutputConfig,
    PlacesConfig,
    Section,
    Side,
    SourceConfig,
    unset,
)

RuntimeName = Literal[
    "torch", "cpp", "cpp-bf16", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16",
    "openvino-int8", "litert",
]  # fmt: skip


class RuntimeConfig(DeviceConfig):
    """Where a finished network runs, and what runs it."""

    runtime: Literal["auto"] | RuntimeName = "auto"
    """The library that runs the network on a CPU, in float32 unless its name says another
    precision; auto: for 64 pictures or more the fastest that `mobilenetv2 benchmark` found in
    agreement for this model, or cpp where it is compiled or repays that, else PyTorch; for a run's
    own data what measured it in training. int8 and litert run copies that `benchmark` makes."""


class EvaluateConfig(OutputConfig):
    """Measure a classifier: loss, accuracy with its confidence interval, and every class."""

    model: Positional[Path]
    """A run folder, a .safetensors file or a .pth.tar checkpoint."""
    data: Annotated[Positional[str | None], unset("[DATA]")] = None
    """A name or a folder with the classifier's classes (default: the run's own data)."""
    source: PlacesConfig = PlacesConfig()
    machine: RuntimeConfig = RuntimeConfig()
    report: Annotated[Path | None, unset("FOLDER")] = None
    """Write evaluation.json there, and confusion.png, mistakes.png and mistakes.csv of each set."""


class PredictConfig(OutputConfig):
    """Name what pictures show."""

    model: Positional[Path]
    """A run folder, a .safetensors file or a .pth.tar checkpoint."""
    pictures: Annotated[Positional[tuple[Path, ...]], unset("PICTURES …")]
    """Picture files, and folders of them to any depth (one at least)."""
    top: Annotated[int, Field(ge=1)] = 3
    """How many labels to print for each picture; never more than there are."""
    csv: Annotated[Path | None, unset("FILE")] = None
    """Write a table: path, error, labels, probabilities. A rerun goes on where it stopped. What
    cannot be read is in it, and no failure; on the terminal it makes the exit code 1."""
    jsonl: Annotated[Path | None, unset("FILE")] = None
    """The same as one JSON object per line."""
    machine: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _one_file(self) -> "PredictConfig":
        if self.csv and self.jsonl:
            raise ValueError("csv and jsonl: name one of them")
        if Path("-") in (self.csv, self.jsonl):
            raise ValueError("csv and jsonl name a file; the output is called /dev/stdout")
        return self


class PageConfig(Section):
    """A page that runs a classifier in a browser."""

    assets: Annotated[Path | None, unset("FOLDER")] = None
    """For a page: the folder `dist` of the npm package onnxruntime-web, whose two files that are
    needed are copied into the page (default: browsers load them from jsDelivr)."""
    sure: Fraction = 0.6
    """For a page: below this probability of its best guess it says that it is not sure."""


ExportFormat = Literal["onnx", "openvino", "torch", "litert", "executorch", "web"]
ExportPrecision = Literal["fp32", "fp16", "bf16", "int8"]

PRECISIONS: dict[ExportFormat, tuple[ExportPrecision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "fp16", "int8"),
    "torch": ("fp32", "fp16", "bf16"),
    "litert": ("fp32",),
    "executorch": ("fp32",),
    "web": ("fp32", "fp16", "int8"),
}
"""What a file's weights can be. bf16 is for where arithmetic follows the file: ONNX Runtime gains
nothing from it on a CPU, and OpenVINO chooses when it loads a file (INFERENCE_PRECISION_HINT)."""


class ExportConfig(OutputConfig):
    """Write a classifier as a file that runs without this program, and prove that it does."""

    model: Positional[Path]
    """A run folder, a .safetensors file or a .pth.tar checkpoint."""
    format: ExportFormat = "onnx"
    """ONNX, OpenVINO's own, PyTorch's exported program, LiteRT (TensorFlow Lite), ExecuTorch, or
    web: a folder with a page that runs the ONNX file in a browser."""
    raw: FlagCreatePairsOff[bool] = False
    """The network alone, without preparation and probabilities; its input is written down."""
    picture_size: Annotated[tuple[Side, Side] | None, unset("INT INT")] = None
    """For litert and executorch, which fix it: height and width of the pictures that the file takes
    (default: the size that is left after resizing, so that nothing is resized inside)."""
    fp16: FlagCreatePairsOff[bool] = False
    """Weights in float16: half the size. With --format torch, arithmetic too."""
    bf16: FlagCreatePairsOff[bool] = False
    """Weights and arithmetic in bfloat16, for --format torch."""
    int8: FlagCreatePairsOff[bool] = False
    """Weights and arithmetic in 8 bits: a quarter of the size."""
    max_drop: Annotated[float, Field(ge=0, le=1)] = 0.005
    """Most accuracy that fp16, bf16 or int8 may cost, as a share of all pictures."""
    max_difference: Annotated[float, Field(gt=0)] = 1e-4
    """Largest difference of a logit that a float32 file may show."""
    verify: Annotated[str | None, unset("DATA")] = None
    """Pictures to prove the file on: a name or a folder (default: the run's own test set, else its
    validation set)."""
    source: SourceConfig = SourceConfig()
    page: PageConfig = PageConfig()
    out: Annotated[Path | None, unset("FILE")] = None
    """The file, or the folder of a page (default: beside the model)."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Replace the file if it is there; of folders, only pages that this program made."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ExportConfig":
        if self.fp16 + self.bf16 + self.int8 > 1:
            raise ValueError("fp16, bf16 and int8: name one of them")
        if self.precision not in PRECISIONS[self.format]:
            forms = [form for form, kinds in PRECISIONS.items() if self.precision in kinds]
            raise ValueError(
                f"{self.precision}: not for --format {self.format}; use --format "
                f"{' or '.join(forms)}"
            )
        if self.format == "web" and (self.raw or self.picture_size):
            raise ValueError("--format web holds the whole contract: no raw or picture_size")
        if self.picture_size and self.format not in ("litert", "executorch"):
            raise ValueError(f"picture_size: --format {self.format} takes pictures of any size")
        if self.picture_size and self.raw:
            raise ValueError(
                "picture_size: the network alone (raw) takes what the classifier has prepared, of "
                "one size; leave one of the two out"
            )
        if self.format != "web" and self.page != PageConfig():
            raise ValueError("assets and sure belong to --format web")
        return self

    @property
    def precision(self) -> ExportPrecision:
        """Of the weights."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "int8" if self.int8 else "fp32"


class BenchmarkConfig(OutputConfig):
    """Measure what runs a classifier fastest on this machine, and remember it."""

    model: Positional[Path]
    """A run folder, a .safetensors file or a .pth.tar checkpoint."""
    verify: Annotated[str | None, unset("DATA")] = None
    """Pictures to compare the answers on: a name or a folder (default: the run's own test set, else
    its validation set; noise where there is none)."""
    source: SourceConfig = SourceConfig()
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(min_length=1)
    ] = (1, 32)
    """Pictures at once; the last decides what is remembered."""
    seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    """Time spent on measuring each runtime at each batch size, all rounds together (at least three
    batches in each)."""
    rounds: Annotated[int, Field(ge=1, le=100)] = 3
    """How often all runtimes are visited, one after the other."""
    compiled: bool = True
    """Also measure torch.compile, which takes a minute to compile, and less in the later rounds."""
    report: Annotated[Path | None, unset("FOLDER")] = None
    """Write benchmark.json and benchmark.png there."""


class DemoConfig(OutputConfig):
    """Try a classifier in the browser of this computer: draw, choose pictures, use the camera."""

    model: Positional[Path]
    """A run folder, a .safetensors file, a .pth.tar checkpoint, or a folder that `export --format
    web` made."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8224
    """On 127.0.0.1, where nobody else can reach it; 0 for any that is free."""
    page: PageConfig = PageConfig()
    source: SourceConfig = SourceConfig()
    browser: bool = True
    """Open the page in a browser."""


class CompareConfig(OutputConfig):
    """Show runs beside each other: what came out of each, and in which settings they differ."""

    runs: Annotated[Positional[tuple[Path, ...]], unset("RUN RUN …")]
    """Run folders, two at least; the others are compared to the first."""
    report: Annotated[Path | None, unset("FOLDER")] = None
    """Write comparison.json there, and comparison.png with the validation curves of all."""


class InspectConfig(OutputConfig):
    """Show the layers, parameters and multiply-adds of a model, or the health of a folder."""

    thing: Annotated[Positional[str | None], unset("THING")] = None
    """A run folder or model file, a folder of pictures, or the name of a network (default: the one
    of --network)."""
    network: NetworkConfig = NetworkConfig()
    image_size: Annotated[Side | tuple[Side, Side], arg(metavar="INT [INT]")] = 224
    """For a network by name: the pictures' side in pixels, or height and width."""
    classes: Annotated[int, Field(ge=2)] = 1000
    """For a network by name: how many classes it tells apart."""
    channels: Literal[1, 3] = 3
    """For a network by name: 3 for RGB, 1 for grey."""
    strict: FlagCreatePairsOff[bool] = False
    """For a folder: exit with 1 if the doctor has any finding that is more than a note."""
    report: Annotated[Path | None, unset("FOLDER")] = None
    """For a folder: write doctor.json and the contact sheet doctor.png there."""
