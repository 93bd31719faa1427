"""What this machine's processor is, as far as networks notice."""

import platform
from pathlib import Path

EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Instruction sets of x86 that add products of 8 bits in 32."""


def name() -> str:
    """Its model, and whether it has matrix tiles."""
    names = _lines("model name")
    tiles = " AMX" if "amx_bf16" in _flags() else ""
    return f"{names[0] if names else platform.processor() or platform.machine()}{tiles}"


def weight_bits() -> int:
    """How many bits a quantised weight may use: 8, or 7 where sums of more would be cut off.

    x86 processors without the instructions above add two products of 8 bits in 16.
    """
    flags = _flags()
    return 8 if not flags or EXACT & flags else 7


def _flags() -> set[str]:
    """Instruction sets, where the processor is x86 and the system is Linux."""
    return set(" ".join(_lines("flags")[:1]).split())


def _lines(key: str) -> list[str]:
    """What /proc/cpuinfo says under this key, once per core."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
