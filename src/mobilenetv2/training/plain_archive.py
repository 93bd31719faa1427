"""A look into a checkpoint before anything is built from it.

``torch.load(weights_only=True)`` runs no code of strangers, but it believes what a file says of its
own sizes, unpacks what was packed, and knows more kinds of objects than a checkpoint has. Here the
file has to be exactly of the kind that :func:`torch.save` makes of tensors and plain values.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from torch import Tensor

from mobilenetv2.model_file import require_stored
from mobilenetv2.seals import COMMENT_SIZE

STORAGES = {
    "torch BoolStorage": 1, "torch ByteStorage": 1, "torch CharStorage": 1,
    "torch ShortStorage": 2, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch IntStorage": 4, "torch FloatStorage": 4,
    "torch LongStorage": 8, "torch DoubleStorage": 8,
}  # fmt: skip
"""Bytes of one element of each kind of storage."""

OTHERS = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}

LONGEST_DIRECTORY = 2 << 20  # bytes; a checkpoint's has a hundred for each of a thousand tensors
MOST_OPERATIONS = 300_000  # of a pickle; a checkpoint has ten thousand, and two for each label
MOST_VALUES = 100_000  # that come of them: a list of one list ten times, and so on, is soon endless
PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GETS = {"GET", "BINGET", "LONG_BINGET"}
MARK, TUPLE = object(), object()
UNKNOWN = object()


class NotPlain(Exception):  # noqa: N818
    """A file that is more than a checkpoint."""


def require_plain(file: IO[bytes]) -> None:
    """Make sure that a sealed archive holds tensors and plain values, of the sizes that it says.

    Raises:
        NotPlain: it does not; says why.
        ValueError, zipfile.BadZipFile: it is no archive or no pickle.
    """
    size = file.seek(0, 2)
    if _directory_size(file) > LONGEST_DIRECTORY:
        raise NotPlain("it has too many records")
    with zipfile.ZipFile(file) as archive:
        records: dict[str, int] = {}
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED or record.filename in records:
                raise NotPlain(f"record {record.filename!r} is packed or doubled")
            records[record.filename] = record.file_size
        if sum(records.values()) > size:
            raise NotPlain("its records overlap")
        pickles = [name for name in records if name.endswith("data.pkl")]
        if len(pickles) != 1:
            raise NotPlain("it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        for key, needed in _storages(archive.read(pickles[0])):
            if records.get(f"{folder}data/{key}") != needed:
                raise NotPlain(f"storage {key!r} has another size than it says")


def require_modest(contents: Any) -> None:
    """Make sure that what was unpickled is no more than it seemed: values, numbers of tensors.

    Raises:
        NotPlain: it is.
        ValueError: a tensor claims more than is stored.
    """
    values, tensors = [contents], {}
    for done, value in enumerate(values):  # which grows on the way
        if isinstance(value, dict):
            values += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            values += value
        elif isinstance(value, Tensor):
            tensors[str(done)] = value
        if len(values) > MOST_VALUES:
            raise NotPlain("it has too many values")
    require_stored(tensors)


def _directory_size(file: IO[bytes]) -> int:
    """Bytes of the list of records, as the end of a sealed archive says: in 64 bits or in 32."""
    end = COMMENT_SIZE + 22  # of the last record and the comment; before it, 20 point to a longer
    file.seek(-min(file.seek(0, 2), end + 36), 2)
    tail = file.read()
    if tail[-end - 20 : -end - 16] == b"PK\6\7":
        return int.from_bytes(tail[-end - 36 : -end - 28], "little")
    return int.from_bytes(tail[12 - end : 16 - end], "little")


def _storages(pickled: bytes) -> Iterator[tuple[str, int]]:
    """Key and bytes of every storage that a pickle refers to.

    A reference is the tuple ("storage", kind, key, device, elements), as :func:`torch.save` writes
    it, and nothing else.
    """
    memo: dict[Any, Any] = {}
    recent: list[Any] = []  # what the last operations put on the stack, as far as known
    for done, (operation, argument, _) in enumerate(pickletools.genops(pickled)):
        if done == MOST_OPERATIONS:
            raise NotPlain("it is too long to look through")
        name = operation.name
        if name in PUTS:
            memo[len(memo) if name == "MEMOIZE" else argument] = recent[-1] if recent else UNKNOWN
            continue
        if name in GETS:
            recent.append(memo.get(argument, UNKNOWN))
        elif name == "GLOBAL":
            if argument not in STORAGES and argument not in OTHERS:
                raise NotPlain(f"it wants {argument!r}, which is no part of a checkpoint")
            recent.append(argument)
        elif name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise NotPlain("it makes objects that are no part of a checkpoint")
        elif name == "BINPERSID":
            yield _reference(recent)
            recent.append(UNKNOWN)
        elif name in ("MARK", "TUPLE"):
            recent.append(MARK if name == "MARK" else TUPLE)
        else:
            recent.append(argument if isinstance(argument, str | int) else UNKNOWN)
        del recent[:-8]


def _reference(recent: list[Any]) -> tuple[str, int]:
    match recent[-7:]:
        case [mark, "storage", str(kind), str(key), str(), int(count), made]:
            if mark is MARK and made is TUPLE and kind in STORAGES and count >= 0:
                return key, count * STORAGES[kind]
    raise NotPlain("a storage is not referred to as it should be")
