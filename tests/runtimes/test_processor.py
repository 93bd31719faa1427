"""What the processor is, from what Linux says about it, or what others call it."""

import platform
from pathlib import Path

import pytest

from mobilenetv2.runtimes import processor


@pytest.mark.parametrize(
    ("lines", "machine", "bits", "name"),
    [
        (["model name\t: Old one", "flags\t\t: fpu avx2"], "x86_64", 7, "Old one"),
        (["model name\t: New one", "flags\t\t: fpu avx2 avx_vnni"], "x86_64", 8, "New one"),
        (["model name\t: Xeon", "flags\t: avx512_vnni amx_bf16 amx_int8"], "x86_64", 8, "Xeon AMX"),
        (["processor\t: 0", "Features\t: fp asimd"], "aarch64", 8, None),
        (None, "AMD64", 7, None),
        (None, "x86_64", 7, None),
        (None, "i386", 7, None),
        (None, "arm64", 8, None),
        (None, "ARM64", 8, None),
    ],
)
def test_processors(
    lines: list[str] | None,
    machine: str,
    bits: int,
    name: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: object, **__: object) -> str:
        if lines is None:
            raise FileNotFoundError
        return "\n".join(lines * 2)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert processor.weight_bits() == bits
    assert processor.name() == name if name else processor.name()
