"""Compile a C++ file once, keep the library in a cache folder, load it from there.

A file may include others from its folder. The library has a plain C interface, so it needs no
header of PyTorch's and compiles in seconds. It is linked against the OpenMP runtime that PyTorch
has loaded: one pool of threads, not two that fight for the same cores.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from mobilenetv2.cache import cache_folder
from mobilenetv2.locks import one_at_a_time

FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC")
COMPILE_SECONDS = 600
"""A compiler that takes longer than this is given up."""


class BuildError(Exception):
    """The library cannot be built or loaded; the message says why."""


def build(source: Path, *flags: str) -> Path:
    """The library compiled from ``source``: from the cache, or compiled now and put there.

    ``flags`` go to the compiler, after :data:`FLAGS`.

    The name in the cache tells everything that the machine code depends on, so a new version of
    the source, of PyTorch, of the compiler or another processor never meets an old library. A
    checksum beside it finds a library that is half written or damaged; it is compiled again.

    Raises:
        BuildError: no compiler, a compiler that fails, or a folder that cannot be written.
    """
    compiler, openmp = _compiler(), _openmp_runtime()
    library = _library(source, compiler, openmp, flags)
    if _is_intact(library):
        return library
    folder = library.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / f"{source.stem}.lock"):
            if not _is_intact(library):  # else another process was first
                _compile([*compiler, *FLAGS, *flags], source, openmp, library)
    except OSError as error:
        raise BuildError(f"the cache folder {folder} cannot be used ({error.strerror})") from error
    return library


def is_built(source: Path, *flags: str) -> bool:
    """Whether :func:`build` would find the library in the cache, without compiling.

    Raises:
        BuildError: it could not be compiled either.
    """
    return _is_intact(_library(source, _compiler(), _openmp_runtime(), flags))


def _library(source: Path, compiler: list[str], openmp: Path, flags: Sequence[str]) -> Path:
    """Where the library lies in the cache, or will."""
    fingerprint = hashlib.sha256(
        "\0".join(
            (
                _text(source),
                torch.__version__,
                _first_line(_run([*compiler, "--version"])),
                *compiler,
                *FLAGS,
                *flags,
                str(openmp),
                _processor(),
            )
        ).encode()
    ).hexdigest()[:20]
    return cache_folder() / f"{source.stem}-{fingerprint}.so"


def _text(source: Path) -> str:
    """A source, and behind it the files beside it that it includes.

    One that is not there is left to the compiler to name.
    """
    text = source.read_text(encoding="utf-8")
    names = re.findall(r'^#include "(.+)"$', text, re.MULTILINE)
    included = [file for name in names if (file := source.with_name(name)).is_file()]
    return "\0".join([text, *map(_text, included)])


def _compile(compiler: list[str], source: Path, openmp: Path, library: Path) -> None:
    """Into a folder beside the library, then renamed: nobody ever sees half a file."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=library.parent) as folder:
        compiled, linked = Path(folder, "compiled.o"), Path(folder, "linked.so")
        checksum = Path(folder, "checksum")
        _run([*compiler, "-c", str(source), "-o", str(compiled)])
        _run([*compiler, "-shared", str(compiled), str(openmp), "-o", str(linked)])
        checksum.write_text(_checksum(linked))
        linked.replace(library)
        checksum.replace(_checksum_file(library))


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _checksum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _is_intact(library: Path) -> bool:
    try:
        return _checksum_file(library).read_text() == _checksum(library)
    except (OSError, ValueError):
        return False


def _compiler() -> list[str]:
    """``$CXX``, else the first of the usual names that is installed."""
    if platform.system() != "Linux":
        raise BuildError(f"compiled operations are built on Linux only, not {platform.system()}")
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    for name in ("g++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler was found (g++, c++ or $CXX)")


def _openmp_runtime() -> Path:
    """The OpenMP library in this process; PyTorch's own where several packages brought one."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    found = _openmp_libraries(maps)
    if not found:
        raise BuildError("PyTorch was built without OpenMP here")
    site_packages = str(Path(torch.__file__).parent.parent)
    return Path(min(found, key=lambda path: not path.startswith(f"{site_packages}/torch")))


def _openmp_libraries(maps: str) -> list[str]:
    """Paths in a process's memory map; they may have spaces."""
    paths = {fields[5] for line in maps.splitlines() if len(fields := line.split(None, 5)) == 6}
    library = re.compile(r"lib(?:gomp|iomp5|omp)\b[^/]*\.so[^/]*")
    return sorted(path for path in paths if library.fullmatch(Path(path).name))


def _processor() -> str:
    """Model and instruction sets: what ``-march=native`` depends on."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    first = info.split("\n\n")[0]
    kept = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(line for line in first.splitlines() if line.startswith(kept))


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=COMPILE_SECONDS
        )
    except FileNotFoundError as error:
        raise BuildError(f"the C++ compiler {command[0]} was not found") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C++ compiler {command[0]} did not run ({error})") from error
    if done.returncode != 0:
        raise BuildError(f"the C++ compiler {command[0]} failed: {_first_line(done.stderr)}")
    return done.stdout


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return lines[0].strip() if lines else "no message"
