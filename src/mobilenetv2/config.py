"""Every setting of pictures, network and training, described once.

Those of the commands that use a finished classifier are in :mod:`mobilenetv2.command_config`.
These frozen models are the validation, the command line, the YAML file and the Python API at the
same time: a field's name is its flag and its YAML key, its docstring is its help. Precedence is
default < recipe of the data set < ``--config`` file < flag.
Nothing here needs PyTorch.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from tyro.conf import FlagCreatePairsOff, Positional

from mobilenetv2.complaints import explain
from mobilenetv2.errors import ConfigError
from mobilenetv2.intervals import Interval

NetworkName = Literal["mobilenetv2", "first-version"]
OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop"]
ScheduleName = Literal["cosine", "exponential", "multistep", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
YamlWord = BeforeValidator(
    lambda value: ("off", "on")[value] if isinstance(value, bool) else value  # as YAML reads them
)
Side = Annotated[int, Field(ge=8, le=4096)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Stride = Literal[1, 2]
Strides = tuple[Stride, Stride, Stride, Stride, Stride, Stride, Stride, Stride]


def _interval(text: str) -> str:
    Interval.parse(text)  # says what is wrong with it
    return text.replace(" ", "")


def unset(metavar: str) -> Any:
    """A flag that may be left out; its help text says what happens then."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def _metavar(text: str) -> Any:
    return tyro.conf.arg(metavar=text)


class Section(BaseModel):
    """Settings that belong together; immutable, and every unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            flags = flag_names(TrainConfig) | flag_names(type(self))
            raise ConfigError(explain(error, flags)) from error


class SourceConfig(Section):
    """Where pictures come from."""

    data_dir: Annotated[Path | None, unset("FOLDER")] = None
    """Where named sets lie or are downloaded to (default: ~/.cache/mobilenetv2/data)."""


class CacheConfig(Section):
    """Where the pictures of a folder wait, decoded and resized once."""

    memory_limit: Annotated[Annotated[float, Field(ge=0)] | None, unset("GIB")] = None
    """GiB of resized pictures of one set that may lie in memory; more wait in a file (default: a
    quarter of what the machine or the container has, divided among its processes)."""
    cache_dir: Annotated[Path | None, unset("FOLDER")] = None
    """Where such files are kept for the next run (default: ~/.cache/mobilenetv2/pictures)."""
    cache_limit: Annotated[float, Field(gt=0)] = 50.0
    """GiB that such files may take in all; the ones longest unused give way."""


class PlacesConfig(SourceConfig, CacheConfig):
    """Where pictures come from, and where they wait."""


class DataConfig(PlacesConfig):
    """Which pictures, and how they are divided."""

    data: Annotated[Positional[str], _metavar("[DATA]")] = "digits"
    """A name (digits, mnist, fashion-mnist, kmnist, cifar10, cifar100) or a folder: `CLASS/…`,
    or `train/CLASS/…` with `val/` or `test/` beside it."""
    image_size: Annotated[Side | tuple[Side, Side] | None, unset("INT [INT]")] = None
    """Side of the network's input in pixels, or height and width (default: the pictures' own size
    up to 96 px, otherwise 224)."""
    resize: Annotated[Annotated[int, Field(ge=8, le=8192)] | None, unset("INT")] = None
    """Pixels that the shorter side is brought to before the centre of --image-size is cropped;
    equal to it, nothing is cut from that side. In folders, random crops reach into what is cut
    (default: for photos 256 where 224 are seen, for small pictures no more than is seen)."""
    colour: Literal["auto", "rgb", "grey"] = "auto"
    """What the network sees (default: grey if every picture is grey)."""
    val_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the training pictures held out for validation where the data brings no such set."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Decides which pictures are held out; apart from --seed, so that seeds can be compared."""


class NetworkConfig(Section):
    """The network and where its first weights come from."""

    network: NetworkName = "mobilenetv2"
    """The paper's network, or the plain first version that this project grew from."""
    width: Annotated[Annotated[float, Field(ge=0.05, le=4)] | None, unset("FLOAT")] = None
    """Width multiplier: scales every channel count, 0.35 to 1.4 in the paper (default: that of the
    weights, otherwise 1)."""
    strides: Annotated[Strides | None, unset("8×{1,2}")] = None
    """Strides of the stem and the seven stages (default: the paper's 2 1 2 2 2 1 2 1, fewer of
    them 2 for pictures up to 64 px; `mobilenetv2 inspect` shows the plan)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the pooled features that is dropped before the classifier, in training."""
    padding: Literal["symmetric", "keras"] = "symmetric"
    """How stride-2 convolutions pad; weights from Keras need theirs."""
    norm_eps: Annotated[float, Field(gt=0, le=0.1)] = 1e-5
    """Epsilon of the batch norms (Keras: 1e-3)."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the newest batch in the batch norms' running statistics."""


class TransferConfig(Section):
    """Starting from weights that know pictures already."""

    weights: str = "none"
    """none, imagenet (torchvision's for width 1, Keras' for others), imagenet-keras, a file
    (.pth, .safetensors, .h5), or auto: imagenet where it can be had."""
    tune: Literal["auto", "head", "all"] | Annotated[int, Field(ge=1, le=18)] = "auto"
    """What learns: head (a new classifier on frozen features, in seconds), all, the head and the
    last N blocks, or auto: chosen from the number of pictures."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Learning rate of each block of pretrained weights, as a share of the next one's."""


class AugmentConfig(Section):
    """Random changes to training pictures, drawn afresh for every picture and epoch."""

    train_size: Annotated[Side | tuple[Side, Side] | None, unset("INT [INT]")] = None
    """Shorter side of the pictures in training alone, or height and width, at least half of
    --image-size; fewer pixels are faster, and what random crops enlarge is then as large as in
    evaluation (default: the same size)."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Cut out a box of at least this share of the area, stretched to full size; 1 for none."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Move by up to this share of the side, in each direction."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Turn by up to this many degrees, either way."""
    zoom: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Scale each side by a factor between 1 - zoom and 1 + zoom."""
    shear: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Slant by up to this many degrees."""
    flip: bool = False
    """Mirror left and right, one picture in two. Not for digits or letters."""
    colour_jitter: Fraction = 0.0
    """Change brightness, contrast and saturation by up to this share."""
    trivial: bool = False
    """TrivialAugment: one change to each picture, of colours or shape, of any strength (Müller and
    Hutter 2021)."""
    erase: Fraction = 0.0
    """Probability of blanking a random rectangle (Zhong et al. 2017)."""
    mixup: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Blend pairs of pictures and labels; parameter of the Beta draw (Zhang et al. 2018)."""
    cutmix: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Paste a piece of another picture, labels in proportion; Beta parameter (Yun et al. 2019)."""


class OptimizerConfig(Section):
    """How a gradient becomes a step."""

    optimizer: OptimizerName = "sgd"
    """SGD with momentum, Adam, AdamW, or RMSprop as the paper's framework computes it."""
    lr: Annotated[float, Field(gt=0, le=100)] | Literal["auto"] = 0.1
    """Peak learning rate; `auto` runs the range test of `find-lr` first."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD and RMSprop; beta1 of Adam and AdamW."""
    rmsprop_epsilon: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Added to RMSprop's mean square; 1, as in the code of MobileNetV2's authors, leaves small
    gradients about as long as they are, and learning rates are like SGD's."""
    nesterov: bool = True
    """Nesterov's look-ahead momentum, for SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 4e-5
    """Decay of convolution and linear weights; never of norms and biases."""
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, unset("FLOAT")] = None
    """Scale the gradient down to this norm where it is longer (default: no clipping)."""


class ScheduleConfig(Section):
    """How the learning rate moves, stepped after every batch."""

    schedule: ScheduleName = "cosine"
    """Cosine to zero, exponential, steps at milestones, or constant."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up before the schedule; fractions are fine."""
    gamma: Annotated[Annotated[float, Field(gt=0, le=1)] | None, unset("FLOAT")] = None
    """Factor: of `exponential` per epoch (default 0.98, the paper's), of `multistep` per milestone
    (default 0.1)."""
    milestones: Annotated[tuple[Annotated[float, Field(gt=0)], ...], unset("FLOAT …")] = ()
    """Epochs at which `multistep` lowers the rate (default: at 1/2 and 3/4 of training)."""


class DeviceConfig(Section):
    """Where the work is done."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: the fastest there is."""


class MachineConfig(DeviceConfig):
    """What does the work, and how."""

    precision: Precision = "auto"
    """fp32, bf16 where the device has it natively, or auto."""
    deterministic: bool = False
    """Refuse operations that may give other bits from run to run; on a GPU this costs time."""
    fast_ops: Annotated[Literal["auto", "cpp", "triton", "torch", "off"], YamlWord] = "auto"
    """Faster training operations: compiled C++ (which then validates too) or PyTorch only on a CPU,
    Triton on an NVIDIA GPU, or none."""
    compile: Annotated[Literal["auto", "on", "off"], YamlWord] = "auto"
    """torch.compile for the training steps; takes the place of faster operations, and a minute or
    more before the first step. auto: off."""
    cuda_graphs: bool = True
    """On an NVIDIA GPU, record steps and replay them, as launching takes longer than the work."""


class Preprocessing(Section):
    """How a picture becomes the network's input; kept inside every saved classifier."""

    colour: Literal["rgb", "grey"]
    """Channel mode: three channels or one."""
    height: Side
    """Pixels that the network sees, from top to bottom."""
    width: Side
    """Pixels that the network sees, from left to right."""
    resize: Annotated[int, Field(ge=8, le=8192)]
    """The shorter side is brought to this many pixels before the centre is cropped."""
    mean: tuple[float, ...]
    """Subtracted from each channel, after pixels were scaled to 0…1."""
    std: tuple[Annotated[float, Field(gt=0)], ...]
    """Divides each channel after that."""

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return 3 if self.colour == "rgb" else 1

    @model_validator(mode="after")
    def _channels_agree(self) -> "Preprocessing":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.colour} needs {self.channels} means and standard deviations")
        return self


class OutputConfig(Section):
    """What is printed."""

    quiet: bool = False
    """Print nothing but errors and the result."""


class TrainConfig(OutputConfig):
    """Everything that decides a training run."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    transfer: TransferConfig = TransferConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    machine: MachineConfig = MachineConfig()
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Passes over the training pictures."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Pictures per step."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the label given to all classes alike (Szegedy et al. 2016)."""
    balance: Literal["none", "loss", "sampling"] = "none"
    """Let classes of different size count alike: by weights in the loss, or by drawing pictures of
    small classes more often; one setting for both the fitted head and fine-tuning."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is then the model that
    is measured and kept; 0 for none. It starts lower, so that short runs forget random first
    weights; pretrained ones stay in the average."""
    keep: Literal["best", "last"] = "best"
    """The epoch that becomes the classifier: the best on the validation pictures, or the last, so
    that nothing is chosen by them. With few of those the best is partly luck."""
    sync_norm: bool = True
    """Under torchrun: batch norms see the whole batch, as in one process; otherwise each process
    normalises its own part, which is faster and gives other weights."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Start of every random draw."""
    out: Annotated[Path | None, unset("FOLDER")] = None
    """The run folder (default: runs/DATA, then runs/DATA-2, …); of `find-lr`, the folder of its
    picture (default: the current one)."""
    overwrite: FlagCreatePairsOff[bool] = False
    """Allow --out to name a folder that already holds a run, and start it anew."""
    checkpoint_every: Annotated[str, AfterValidator(_interval), _metavar("N{min,steps}|epoch")] = (
        "10min"
    )
    """Save within epochs too, so often: `10min`, `500steps`; or `epoch`, at their ends alone."""
    resume: Annotated[Path | None, unset("RUN")] = None
    """Go on with the run in this folder; its own settings apply."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder."""
    _without_weights: "TrainConfig | None" = PrivateAttr(default=None)

    @property
    def without_weights(self) -> "TrainConfig":
        """What to train with where ``weights: auto`` finds none."""
        settings = (self._without_weights or self).with_weights("none")
        if settings.transfer.tune == "all":
            return settings
        chosen = settings.transfer.model_copy(update={"tune": "auto"})
        return settings.model_copy(update={"transfer": chosen})

    def with_weights(self, weights: str) -> "TrainConfig":
        """The same settings, starting from these weights."""
        transfer = self.transfer.model_copy(update={"weights": weights})
        return self.model_copy(update={"transfer": transfer})

    def or_without_weights(self, settings: "TrainConfig") -> "TrainConfig":
        """The same settings, with others for the case that ``weights: auto`` finds none."""
        both = self.model_copy()
        both._without_weights = settings
        return both

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs ({self.schedule.warmup_epochs:g}) must be less than epochs "
                f"({self.epochs}), or nothing is left for the schedule"
            )
        step = self.optimizer
        if step.optimizer == "sgd" and step.nesterov and step.momentum == 0:
            raise ValueError("nesterov needs momentum above 0; add --no-nesterov")
        return self


def flag_names(model: type[Section]) -> dict[str, str | None]:
    """Each setting's name and the section that holds it (None for the top).

    >>> flag_names(TrainConfig)["lr"], flag_names(TrainConfig)["epochs"]
    ('optimizer', None)
    """
    names: dict[str, str | None] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            names |= dict.fromkeys(field.annotation.model_fields, name)
        else:
            names[name] = None
    return names
