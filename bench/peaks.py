"""Multiply-adds that a core can do in a cycle, by what is documented of its instructions; not by what we reach.

A CPU has two ports for vector multiplications, each as wide as its registers; Zen 4 takes two turns for 512 bits. From
Intel's optimisation manual, AMD's software optimisation guides, and uops.info.
"""

from pathlib import Path

PORTS = 2
ZEN_4_FAMILY = 25
"""AMD's; Zen 3's too, which has no AVX512."""


def macs_per_cycle(isa: str, dtype: str, *, halves_512: bool | None = None) -> float:
    """`dtype`: fp32, bf16 or int8, as the kernels of `isa` multiply it. `halves_512`: the CPU takes two turns for
    512 bits; None: this CPU."""
    if isa == "portable":  # 128 bits, whatever the type
        return PORTS * 4.0
    if halves_512 is None:
        halves_512 = read_amd_family() == ZEN_4_FAMILY
    is_wide = isa in ("avx512_base", "avx512", "avx512_bf16", "amx") and not halves_512
    per_cycle = PORTS * (64 if is_wide else 32)
    # Two vpmaddubsw and one vpmaddwd, which have the same ports, for 64 products, in 256 bits. vpdpbusd needs no other.
    without_vnni = PORTS * 32 * 2 / 3
    peaks = {
        ("avx2", "int8"): without_vnni,
        ("avx512_base", "int8"): without_vnni,
        # A tile of 16 x 16 sums gets 64 bytes a row every 16 cycles.
        ("amx", "int8"): 16 * 16 * 64 / 16,
        ("amx", "bf16"): 16 * 16 * 32 / 16,
        ("avx512_bf16", "bf16"): per_cycle / 2,
    }
    return peaks.get((isa, dtype), per_cycle if dtype == "int8" else per_cycle / 4)


def read_amd_family() -> int | None:
    """AMD's number for the CPU's design; None for others' CPUs."""
    text = Path("/proc/cpuinfo").read_text()
    lines = [line for line in text.splitlines() if line.startswith("cpu family")]
    return int(lines[0].partition(":")[2]) if "AuthenticAMD" in text and lines else None
