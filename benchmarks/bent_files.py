"""Models and checkpoints as a stranger might send them: bent, cut, lying and malicious ones.

Each is a good file that was damaged in a way which the number of the case decides: bytes, headers,
descriptions, pickled values, records of an archive. Where that is possible they are sealed again,
so that the digest does not catch the damage first. Most are small, with three tensors; one in
thirty is that of a whole network.
"""

import hashlib
import io
import json
import os
import pickle
import random
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from mobilenetv2.classifier import Classifier
from mobilenetv2.config import NetworkConfig, Preprocessing
from mobilenetv2.model_file import METADATA_KEY
from mobilenetv2.seals import BLANK, DIGEST_KEY, HEX_DIGITS, seal_safetensors, seal_zip
from mobilenetv2.training.checkpoints import FORMAT, VERSION, to_archive

ODD_NUMBERS = (0, 1, -1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**64, 10**30, 0.5, 1e308)
ODD_VALUES: tuple[Any, ...] = (None, True, "", "x" * 999, [], {}, [[[]]], *ODD_NUMBERS)
DTYPES = ("F32", "F64", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "C64", "F4", "X")
KEPT = ("features.0.1.weight", "features.0.1.num_batches_tracked", "classifier.1.bias")
WHOLE = 30  # one case in so many has all tensors of a network
HUGE = 2000  # one case in so many is as long as a file may be, or longer


@dataclass(frozen=True)
class GoodFiles:
    """A model and a checkpoint with nothing wrong.

    Attributes:
        model: a safetensors file.
        contents: what a checkpoint holds.
    """

    model: bytes
    contents: dict[str, Any]

    @cached_property
    def header(self) -> dict[str, Any]:
        """Of the model, with a blank for its digest."""
        size = int.from_bytes(self.model[:8], "little")
        header: dict[str, Any] = json.loads(self.model[8 : 8 + size])
        header["__metadata__"][DIGEST_KEY] = BLANK
        return header

    @cached_property
    def about(self) -> dict[str, Any]:
        """The description of the classifier in the model."""
        about: dict[str, Any] = json.loads(self.header["__metadata__"][METADATA_KEY])
        return about

    @cached_property
    def numbers(self) -> bytes:
        """The model after its header."""
        return self.model[8 + int.from_bytes(self.model[:8], "little") :]

    @cached_property
    def archive(self) -> bytes:
        """The checkpoint as a file."""
        return bytes(to_archive(self.contents))

    @cached_property
    def records(self) -> dict[str, bytes]:
        """What is in that archive."""
        with zipfile.ZipFile(io.BytesIO(self.archive)) as source:
            return {name: source.read(name) for name in source.namelist()}


def good_files() -> tuple[GoodFiles, GoodFiles]:
    """Small ones, and whole ones."""
    torch.manual_seed(0)
    wanted = Preprocessing(colour="grey", height=8, width=8, resize=8, mean=(0.5,), std=(0.5,))
    classifier = Classifier.create(NetworkConfig(width=0.05), wanted, ("a", "b"))
    weights = classifier.network.state_dict()
    few = {name: weights[name] for name in KEPT}
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(Path(folder) / "model")
        whole = (Path(folder) / "model").read_bytes()
    # The first version is built sooner, which is most of the time where a description is good.
    about = classifier.metadata()
    about = {**about, "network": {**about["network"], "network": "first-version"}}
    small = bytearray(save(few, {METADATA_KEY: json.dumps(about)}))
    seal_safetensors(small)
    optimizer = torch.optim.SGD(classifier.network.parameters(), 0.1, momentum=0.9)
    contents = {
        "format": f"{FORMAT} {VERSION}", "settings": {}, "labels_digest": "",
        "classifier": classifier.metadata(), "weights": weights, "averaged": None,
        "optimizer": optimizer.state_dict(), "schedule": {}, "epoch": 1, "step": 0,
        "random_state": torch.get_rng_state(), "cuda_random_state": None, "lr": 0.1, "history": {},
    }  # fmt: skip
    shorter = {"classifier": about, "weights": few, "optimizer": {"state": {}}}
    return GoodFiles(bytes(small), {**contents, **shorter}), GoodFiles(whole, contents)


def bent_file(number: int, kind: str, good: tuple[GoodFiles, GoodFiles]) -> bytes:
    """The case of that number: a "model" or a "checkpoint"."""
    draw = random.Random(number)
    base = good[draw.randrange(WHOLE) == 0]
    if draw.randrange(HUGE) == 0:
        return huge_model(draw, base) if kind == "model" else huge_checkpoint(draw, base)
    return bent_model(draw, base) if kind == "model" else bent_checkpoint(draw, base)


def bent_model(draw: random.Random, good: GoodFiles) -> bytes:
    """A damaged safetensors file."""
    header = good.header
    match draw.randrange(8):
        case 0:
            header = bend_value(draw, header)
        case 1 | 2 | 3:  # inside the description of the classifier
            header = described(header, json.dumps(bent_description(draw, good.about)))
        case 4:
            text = bend_bytes(draw, json.dumps(good.about).encode()).decode("latin")
            header = described(header, text)
        case 5:
            header = lying_header(draw, header)
        case 6:
            bent = bend_bytes(draw, written(header))
            size = draw.choice((len(bent), len(written(header))))
            return sealed(size.to_bytes(8, "little") + bent + good.numbers)
        case _:
            size = int.from_bytes(good.model[:8], "little")
            length = draw.choice((0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1))
            return sealed(length.to_bytes(8, "little") + good.model[8:])
    return model_file(header, good.numbers)


def bent_description(draw: random.Random, about: dict[str, Any]) -> Any:
    """Mostly something that decides what is built from the weights."""
    if draw.random() < 0.1:
        return bend_value(draw, about)
    keys = draw.choices(("network", "preprocessing", "labels"), k=draw.choice((1, 1, 3)))
    return about | {key: bend_value(draw, about[key]) for key in keys}


def lying_header(draw: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """Tensors of other kinds, sizes and places than there are."""
    changed = dict(header)
    for name in draw.choices([name for name in header if name != "__metadata__"], k=3):
        entry = changed[name]
        match draw.randrange(4):
            case 0:
                entry = {**entry, "dtype": draw.choice(DTYPES)}
            case 1:
                entry = {**entry, "shape": draw.choices((0, 1, 2, 2**20, 2**40, 2**63), k=3)}
            case 2:
                start, end = entry["data_offsets"]
                moved = draw.choice((-end, -1, 1, 8, 2**40, 2**64))
                entry = {**entry, "data_offsets": draw.choice(([start, end + moved], [end, start]))}
            case _:
                changed["x" + name] = entry  # twice the same bytes
        changed[name] = entry
    return changed


def huge_model(draw: random.Random, good: GoodFiles) -> bytes:
    """A header of a million parts."""
    header = good.header
    match draw.randrange(4):
        case 0:
            opened = draw.choice((900, 10**4, 10**6))
            deep = "[" * opened + draw.choice(("", "]" * opened))
            text = json.dumps({**good.about, draw.choice(list(good.about)): "DEEP"})
            header = described(header, draw.choice((deep, text.replace('"DEEP"', deep))))
        case 1:
            part = draw.choice(("[],", "{},", "[[[[]]]],", '{"a":[]},', "1,", '"",', "null,"))
            many = f"[{part * (draw.choice((10**5, 10**6, 10**7)) // len(part))}0]"
            header = described(header, placed(draw, good.about, many))
        case 2:
            labels = [str(number) for number in range(draw.choice((10**4, 2 * 10**5)))]
            keys = {label: draw.choice(ODD_VALUES) for label in labels}
            inside = placed(draw, good.about, json.dumps(keys))
            text = json.dumps({**good.about, "labels": labels})
            header = described(header, draw.choice((inside, text)))
        case _:
            empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            header = {str(number): empty for number in range(draw.choice((9000, 10**5)))}
            header["__metadata__"] = good.header["__metadata__"]
    return model_file(header, b"" if "0" in header else good.numbers)


def placed(draw: random.Random, about: dict[str, Any], text: str) -> str:
    """The description with JSON for one of its parts, or for a part of a part."""
    key = draw.choice(list(about))
    part = about[key]
    if isinstance(part, dict) and part and draw.random() < 0.5:
        part = {**part, draw.choice(list(part)): "PLACE"}
    else:
        part = "PLACE"
    return json.dumps({**about, key: part}).replace('"PLACE"', text)


def bent_checkpoint(draw: random.Random, good: GoodFiles) -> bytes:
    """A damaged checkpoint, sealed."""
    match draw.randrange(5):
        case 0 | 1:
            return bytes(to_archive(bend_value(draw, good.contents)))
        case 2:
            call: Call = draw.choice(
                (Call(os.system, "true"), Call(bytearray, 10**10), Call(eval, "1"),
                 Call(set, [1]), Call(torch.zeros, 10**10), Call(print, "x"), Call(complex, 1, 2))
            )  # fmt: skip
            return bytes(to_archive({**good.contents, draw.choice(list(good.contents)): call}))
        case _:
            return rezipped(draw, good)


def rezipped(draw: random.Random, good: GoodFiles) -> bytes:
    """The same records with one of them bent, packed again, perhaps as a bomb."""
    pickled = next(name for name in good.records if name.endswith("data.pkl"))
    name = draw.choice((pickled, pickled, *good.records))
    data = good.records[name]
    match draw.randrange(4):
        case 0:
            data = bytes(draw.choice((0, 10**5)))
        case 1 if name == pickled:
            data = pickle.dumps(draw.choice(ODD_VALUES), protocol=draw.choice((0, 2, 4)))
        case 2:
            data = data[: len(data) // 2]
        case _:
            data = bend_bytes(draw, data)
    method = draw.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED,))
    packed = zipped({**good.records, name: data}, method)
    if draw.random() < 0.3:
        directory = packed.rfind(b"PK\1\2")
        packed[directory:-22] = bend_bytes(draw, bytes(packed[directory:-22]))
    seal_zip(packed)
    return bytes(packed)


def huge_checkpoint(draw: random.Random, good: GoodFiles) -> bytes:
    """Very many records, operations or values, and bombs."""
    pickled = next(name for name in good.records if name.endswith("data.pkl"))
    match draw.randrange(5):
        case 0:
            count = draw.choice((10**3, 10**5))
            packed = zipped({**good.records, **{f"x/{number}": b"" for number in range(count)}})
        case 1:
            parts = (b"N0", b"}q\1", b"]q\1h\1", b"K\1", b"(", b"\x8a\1\1", b"X\0\0\0\0")
            part = draw.choice(parts)
            data = b"\x80\2" + part * (draw.choice((10**5, 10**6)) // len(part)) + b"."
            packed = zipped({**good.records, pickled: data})
        case 2:
            packed = zipped({**good.records, pickled: bytes(10**7)}, zipfile.ZIP_DEFLATED)
        case 3:  # a list of ten times a list of ten times …
            many: Any = draw.choice(ODD_VALUES)
            for _ in range(draw.choice((4, 30))):
                many = [many] * 10
            return bytes(to_archive(replaced(draw, good.contents, many)))
        case _:
            count = draw.choice((10**3, 4 * 10**4))
            odd = dict.fromkeys(range(count)) if draw.random() < 0.5 else [None] * count
            return bytes(to_archive(replaced(draw, good.contents, odd)))
    seal_zip(packed)
    return bytes(packed)


def replaced(draw: random.Random, contents: Any, value: Any) -> Any:
    """With ``value`` for something in nested dictionaries."""
    if isinstance(contents, dict) and contents and draw.random() < 0.8:
        key = draw.choice(list(contents))
        return {**contents, key: replaced(draw, contents[key], value)}
    return value


# ------------------------------------------------------------------------ damages


def bend_bytes(draw: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert."""
    bent = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place = draw.randrange(len(bent) + 1)
        match draw.randrange(5):
            case 0 if place < len(bent):
                bent[place] ^= 1 << draw.randrange(8)
            case 1:
                del bent[place : place + draw.choice((1, 4, 100, 10**6))]
            case 2:
                bent[place:place] = bent[place : place + draw.choice((1, 8, 64))]
            case 3:
                bent[place:place] = draw.randbytes(draw.choice((1, 4, 8)))
            case _ if place < len(bent):
                bent[place] = draw.choice((0, 1, 127, 128, 255))
    return bytes(bent)


def bend_value(draw: random.Random, value: Any) -> Any:
    """One odd value somewhere in nested lists and dictionaries."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        changed = {**value, key: bend_value(draw, value[key])}
        if draw.random() < 0.1:
            del changed[key]
        if draw.random() < 0.1:
            changed[draw.choice(("", "x", "__class__", "weights"))] = draw.choice(ODD_VALUES)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.9:
        changed = list(value)
        place = draw.randrange(len(changed))
        changed[place] = bend_value(draw, changed[place])
        return changed * draw.choice((1, 1, 1, 2, 100))
    if isinstance(value, torch.Tensor) and draw.random() < 0.9:
        return bend_tensor(draw, value)
    return draw.choice(ODD_VALUES)


def bend_tensor(draw: random.Random, value: torch.Tensor) -> Any:
    """Another shape, dtype or layout."""
    match draw.randrange(7):
        case 0:
            return value.new_zeros(()).expand(draw.choice((1, 10**6, 10**9)), 1000)
        case 1:
            return value.reshape(-1)[:0]
        case 2:
            return value.to(draw.choice((torch.float16, torch.int8, torch.bool, torch.complex64)))
        case 3:
            return torch.empty(draw.choice(((10**6, 10**6), (0,))), device="meta")
        case 4:
            return value.flatten().to_sparse()
        case 5:
            return torch.full_like(value, float("nan")) if value.is_floating_point() else value - 1
        case _:
            return value.t() if value.ndim == 2 else value[None]


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self._reduced


# -------------------------------------------------------------------------- files


def described(header: dict[str, Any], text: str) -> dict[str, Any]:
    """The header with another description of the classifier."""
    return {**header, "__metadata__": {**header["__metadata__"], METADATA_KEY: text}}


def written(header: Any) -> bytes:
    """As safetensors writes it, without spaces."""
    return json.dumps(header, separators=(",", ":")).encode()


def model_file(header: Any, numbers: bytes) -> bytes:
    """A sealed safetensors file."""
    text = written(header)
    return sealed(len(text).to_bytes(8, "little") + text + numbers)


def sealed(data: bytes) -> bytes:
    """With the right digest, where there still is a place for it."""
    key = f'"{DIGEST_KEY}":"'.encode()
    place = data.find(key) + len(key)
    blank = data[:place] + BLANK.encode() + data[place + HEX_DIGITS :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return data[:place] + digest + data[place + HEX_DIGITS :]


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytearray:
    """An archive, not sealed yet."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", method) as zip_:
        for name, data in records.items():
            zip_.writestr(name, data)
    return bytearray(output.getvalue())
