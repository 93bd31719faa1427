import ctypes
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

from mobilenetv2.network import native

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("c++") is None,
    reason="needs Linux and a C++ compiler",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MOBILENETV2_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "answer.cpp"
    file.write_text(
        '#include <omp.h>\nextern "C" int answer() { return 41 + omp_in_parallel() + 1; }'
    )
    return file


def answer(library: Path) -> int:
    return ctypes.CDLL(str(library)).answer()


def test_compiles_once(cache, source, monkeypatch):
    assert not native.is_built(source)
    library = native.build(source)
    assert native.is_built(source)
    assert library.parent == cache
    assert answer(library) == 42
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native.build(source) == library


def test_leaves_nothing_else_in_the_cache(cache, source):
    library = native.build(source)
    names = {file.name for file in cache.iterdir()}
    assert names == {library.name, library.with_suffix(".sha256").name}


def test_what_it_includes_counts(cache, source):
    """A header, and a header of that."""
    source.write_text(
        '#include <omp.h>\n#include "one.h"\n\nextern "C" int answer() { return TWO; }'
    )
    source.with_name("one.h").write_text('#include "two.h"\n')
    source.with_name("two.h").write_text("#define TWO 42\n")
    first = native.build(source)
    assert answer(first) == 42
    source.with_name("two.h").write_text("#define TWO 43\n")
    second = native.build(source)
    assert second != first
    assert answer(second) == 43
    source.with_name("two.h").unlink()
    with pytest.raises(native.BuildError, match=r"failed: .*two\.h"):
        native.build(source)


@pytest.mark.parametrize("flag", ["-O2", "-g"])
def test_other_flags_or_source_are_another_library(cache, source, monkeypatch, flag):
    first = native.build(source)
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, flag))
    second = native.build(source)
    source.write_text(source.read_text().replace("41", "1"))
    third = native.build(source)
    fourth = native.build(source, "-DOTHER")
    assert len({first, second, third, fourth}) == 4
    assert answer(third) == 2


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_half_written_library_is_compiled_again(cache, source, keep):
    library = native.build(source)
    library.write_bytes(library.read_bytes()[:keep])
    assert answer(native.build(source)) == 42


def test_a_library_without_its_checksum_is_compiled_again(cache, source, monkeypatch):
    library = native.build(source)
    library.with_suffix(".sha256").write_bytes(b"\xff\xfe")
    assert native.build(source) == library
    assert native._is_intact(library)


def _build_and_answer(source: Path) -> int:
    return answer(native.build(source))


@pytest.mark.slow
def test_processes_that_compile_at_once_agree(cache, source):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_build_and_answer, [source] * 3) == [42] * 3
    assert len(list(cache.glob("*.so"))) == 1


def test_a_broken_compiler_is_named(cache, source, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(native.BuildError, match="false failed"):
        native.build(source)
    monkeypatch.setenv("CXX", "no-such-compiler -v")
    with pytest.raises(native.BuildError, match="no-such-compiler was not found"):
        native.build(source)


def test_a_source_with_an_error_is_quoted(cache, source):
    source.write_text("nonsense")
    with pytest.raises(native.BuildError, match=r"answer\.cpp:1:1: error"):
        native.build(source)
    assert list(cache.iterdir()) == []


def test_no_compiler_at_all(cache, source, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler"):
        native.build(source)


def test_an_unusable_cache_folder_is_named(tmp_path, source, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    monkeypatch.setenv("MOBILENETV2_CACHE", str(in_the_way / "cache"))
    with pytest.raises(native.BuildError, match="file/cache cannot be used"):
        native.build(source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_cache_folder_is_named(cache, source):
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(native.BuildError, match=r"cannot be used \(Permission denied\)"):
        native.build(source)


def test_the_library_may_lie_in_a_folder_with_spaces():
    library = "/my home/venv/torch/lib/libgomp.so.1"
    maps = f"7f12-7f13 r-xp 00000000 08:01 42    {library}\n7f14-7f15 r--p 00000000 00:00 0\n"
    assert native._openmp_libraries(maps) == [library]


def test_uses_the_threads_of_pytorch(cache, source):
    answer(native.build(source))
    maps = Path("/proc/self/maps").read_text()
    assert str(native._openmp_runtime()) in maps
