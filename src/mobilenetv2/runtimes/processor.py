"""What this machine's processor is, as far as networks notice."""

import platform
from pathlib import Path

import torch

EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Instruction sets of x86 that add products of 8 bits in 32."""
X86 = {"x86_64", "amd64", "i386", "i486", "i586", "i686", "x86"}
"""What systems call x86, in small letters."""


def name() -> str:
    """Its model, and whether it has matrix tiles."""
    names = _lines("model name")
    tiles = " AMX" if "amx_bf16" in _flags() else ""
    return f"{names[0] if names else platform.processor() or platform.machine()}{tiles}"


def weight_bits() -> int:
    """How many bits a quantised weight may use: 8, or 7 where sums of more could be cut off.

    x86 processors without the instructions above add two products of 8 bits in 16. Where an x86
    system does not say which instructions there are, as Windows and macOS do not, it is 7 too.
    """
    flags = _flags()
    x86 = bool(flags) or platform.machine().lower() in X86
    return 7 if x86 and not EXACT & flags else 8


def multiplies_bf16() -> bool:
    """Whether it multiplies bfloat16 in hardware: x86 with AMX or AVX512-BF16."""
    return bool(torch.cpu._is_avx512_bf16_supported()) or has_amx()


def has_amx() -> bool:
    """Whether it has matrix tiles that may be used."""
    return bool(torch.cpu._is_amx_tile_supported())


def _flags() -> set[str]:
    """Instruction sets, where the processor is x86 and the system is Linux; else none."""
    return set(" ".join(_lines("flags")[:1]).split())


def _lines(key: str) -> list[str]:
    """What /proc/cpuinfo says under this key, once per core."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(key)]
