"""What the processor is, from what Linux says about it."""

from pathlib import Path

import pytest

from mobilenetv2.runtimes import processor


@pytest.mark.parametrize(
    ("lines", "bits", "name"),
    [
        (["model name\t: Old one", "flags\t\t: fpu avx2"], 7, "Old one"),
        (["model name\t: New one", "flags\t\t: fpu avx2 avx_vnni"], 8, "New one"),
        (["model name\t: Xeon", "flags\t: avx512_vnni amx_bf16 amx_int8"], 8, "Xeon AMX"),
        (["processor\t: 0", "Features\t: fp asimd"], 8, None),
        (None, 8, None),
    ],
)
def test_processors(
    lines: list[str] | None, bits: int, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> str:
        if lines is None:
            raise FileNotFoundError
        return "\n".join(lines * 2)

    monkeypatch.setattr(Path, "read_text", read)
    assert processor.weight_bits() == bits
    assert processor.name() == name if name else processor.name()
