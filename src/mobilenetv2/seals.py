"""SHA-256 digests kept inside the files that they vouch for.

Sealed files stay what they are for every other program. A zip archive, which a checkpoint is,
carries the digest of its bytes as the archive's comment. A safetensors file carries it as an entry
of its metadata, taken while its digits were all zeros. Either way no bit of the file can flip, and
no part of it can be missing, without being noticed; that somebody changed it on purpose cannot be.
"""

import hashlib
from typing import IO

HEX_DIGITS = 64
MARK = b"sha256:"
COMMENT_SIZE = len(MARK) + HEX_DIGITS
END_OF_DIRECTORY = b"PK\5\6"  # the last record of a zip archive, 22 bytes without a comment
CHUNK = 1 << 20

METADATA = b'{"__metadata__":{'  # how a safetensors header with metadata begins
BLANK = "0" * HEX_DIGITS

DIGEST_KEY = "sha256"
"""Name of the digest in a safetensors file's metadata."""


def seal_zip(archive: bytearray) -> None:
    """Append the digest to a zip archive without a comment, as its comment (in place).

    >>> import io, zipfile
    >>> with io.BytesIO() as file:
    ...     zipfile.ZipFile(file, "w").close()
    ...     archive = bytearray(file.getvalue())
    >>> seal_zip(archive)
    >>> zipfile.ZipFile(io.BytesIO(archive)).comment[:7]
    b'sha256:'
    >>> zip_is_whole(io.BytesIO(archive)), zip_is_whole(io.BytesIO(archive[:-1]))
    (True, False)
    """
    if archive[-22:-18] != END_OF_DIRECTORY or archive[-2:] != b"\0\0":
        raise ValueError("not a zip archive without a comment")
    archive[-2:] = COMMENT_SIZE.to_bytes(2, "little")
    archive += MARK
    archive += hashlib.sha256(archive).hexdigest().encode()


def zip_is_whole(file: IO[bytes]) -> bool:
    """Whether a file is exactly what :func:`seal_zip` made, down to the last bit."""
    size = file.seek(0, 2)
    if size < COMMENT_SIZE:
        return False
    file.seek(size - COMMENT_SIZE)
    comment = file.read(COMMENT_SIZE)
    digest = hashlib.sha256()
    _add(digest, file, 0, size - HEX_DIGITS)
    return comment == MARK + digest.hexdigest().encode()


def seal_safetensors(data: bytearray) -> None:
    """Put the digest into the metadata of a safetensors file, as their first entry (in place).

    The library writes several entries in an order that changes from call to call; with one of its
    own and this one, the same contents always become the same file.
    """
    size = int.from_bytes(data[:8], "little")
    header = bytes(data[8 : 8 + size]).rstrip()
    rest = header.removeprefix(METADATA)
    if rest == header or rest.startswith(b"}") or _entry("")[:-1] in rest:
        raise ValueError("not a safetensors file with metadata and without a digest")
    header = METADATA + _entry(BLANK) + b"," + rest
    header += b" " * (-len(header) % 8)  # so that the numbers lie where processors like them
    data[: 8 + size] = len(header).to_bytes(8, "little") + header
    place = _digest_place(header) + 8
    data[place : place + HEX_DIGITS] = hashlib.sha256(data).hexdigest().encode()


def safetensors_is_whole(file: IO[bytes]) -> bool:
    """Whether a safetensors file is exactly what :func:`seal_safetensors` made."""
    file.seek(0)
    header_size = int.from_bytes(file.read(8), "little")
    end = file.seek(0, 2)
    if header_size > end - 8:
        return False
    file.seek(0)
    place = _digest_place(file.read(8 + header_size))
    file.seek(place)
    stored = file.read(HEX_DIGITS)
    digest = hashlib.sha256()
    _add(digest, file, 0, place)
    digest.update(BLANK.encode())
    _add(digest, file, place + HEX_DIGITS, end)
    return stored == digest.hexdigest().encode()


def _entry(digest: str) -> bytes:
    """The digest's entry in the metadata. Inside of other values, quotes are escaped."""
    return f'"{DIGEST_KEY}":"{digest}"'.encode()


def _digest_place(data: bytes | bytearray) -> int:
    """Where the digits of the digest begin."""
    start = _entry("")[:-1]
    return data.find(start) + len(start)


def _add(digest: "hashlib._Hash", file: IO[bytes], start: int, end: int) -> None:
    """A part of a file into a digest."""
    file.seek(start)
    while start < end:
        part = file.read(min(CHUNK, end - start))
        if not part:
            break  # the file became shorter while it was read
        digest.update(part)
        start += len(part)
