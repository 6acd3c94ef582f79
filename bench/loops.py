"""`python -m bench.loops`: the innermost loops of linear layers as the compiler made them, for every instruction set,
and how many cycles a turn of each takes by llvm-mca's model of three CPUs, against the least that its products take.
Then those of attention in bf16, where the CPU has products of it, against those in fp32.

Nothing is run: CPUs that this machine is not are seen this way only. Memory is taken to be in the first-level cache.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.peaks import macs_per_cycle
from bench.report import RESULTS, format_table
from runtime.backends.cpu.build import FLAGS, ISA_FLAGS, SOURCES, find_compiler, run_compiler, write_generated

AVX512 = ("avx512_bf16", "avx512", "avx512_base")
CPUS = {
    "znver3": ("avx2", "portable"),
    "znver4": (*AVX512, "avx2", "portable"),
    "sapphirerapids": ("amx", *AVX512, "avx_vnni", "avx2", "portable"),
}
"""By llvm's name: what they have."""
NOTE = """Cycles of a turn by the model, the least that the ports for products allow, and that by those. Two things to
know of LLVM 16: its znver4 begins one fp32 product a cycle in 256 bits and two in five cycles in 512, where AMD
documents two and one (znver3 has the former right); and it has no times for AMX's products: none are shown."""
DTYPES = ("fp32", "bf16", "int8")
TURNS = 1000
PRODUCTS = {"zmm": 16, "ymm": 8, "xmm": 4}
"""Of fp32, by the register they end in."""
MULTIPLIES = {"vfmadd": 1, "mulps": 1, "vpdpbusd": 4, "vpmaddubsw": 4, "vdpbf16ps": 2}
"""Instructions, and how many products they make for one of fp32."""
TILE_MULTIPLIES = {"tdpbusd": 16 * 16 * 64, "tdpbf16ps": 16 * 16 * 32}
HEAD_DIM, QUERIES, KEYS = 64, 16, 256
"""Of the block of keys that attention's loops are counted for."""
ATTENTION_CPUS = {"znver4": ("avx512_bf16",), "sapphirerapids": ("amx", "avx512_bf16")}
ATTENTION_HEADINGS = ["ISA", "type", "loop", "instructions", "turns", *(f"{cpu}: cycles" for cpu in ATTENTION_CPUS)]
ATTENTION_NOTE = f"""Attention's loops for {QUERIES} queries and {KEYS} keys of {HEAD_DIM} numbers:
how often they turn, and the cycles of all turns. fp32 is what bf16 is widened to without products of it. Masks, copies,
transpositions and what stands around loops are left out. Tiles, for which the model has no times, are taken at the 16
cycles of their ports."""
HEADINGS = ["ISA", "type", "instructions", "products", *(f"{cpu}: cycles, ideal, share" for cpu in CPUS)]


@dataclass(frozen=True)
class Loop:
    """A loop without others in it, its label and its jump included."""

    lines: tuple[str, ...]

    @property
    def instructions(self) -> list[str]:
        return [line for line in self.lines if not line.endswith(":")]

    @property
    def products(self) -> int:
        return sum(map(count_products, self.lines))

    @property
    def has_tiles(self) -> bool:
        return any(name in line for line in self.lines for name in TILE_MULTIPLIES)


def count_products(line: str) -> int:
    for name, products in TILE_MULTIPLIES.items():
        if name in line:
            return products
    register = line.split("%")[-1][:3]
    return sum(PRODUCTS.get(register, 0) * factor for name, factor in MULTIPLIES.items() if name in line)


def compile_loops(isa: str, file: str = "peak.cpp") -> str:
    """The assembly of a file; of peak.cpp by default, whose functions run a micro-kernel each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for header, text in write_generated().items():
            (folder / header).write_text(text)
        includes, source = [f"-I{folder}", f"-I{SOURCES}"], str(SOURCES / file)
        return run_compiler([find_compiler(), *FLAGS, *ISA_FLAGS[isa], *includes, "-S", source, "-o", "-"])


def list_own_lines(assembly: str, function: str) -> list[str]:
    """Labels and instructions of a function."""
    body = assembly.partition(f"\n{function}:\n")[2].partition(f".size\t{function}")[0]
    lines = [re.sub(r"\s+", " ", line.partition("#")[0]).strip() for line in body.splitlines()]
    return [line for line in lines if line and (line.endswith(":") or not line.startswith("."))]


def list_lines(assembly: str, function: str) -> list[str]:
    """Those of a function and of those it calls."""
    lines = list_own_lines(assembly, function)
    called = dict.fromkeys(line.split()[1].removesuffix("@PLT") for line in lines if line.startswith("call "))
    return lines + [line for name in called if name != function for line in list_lines(assembly, name)]


def list_loops(lines: Sequence[str]) -> list[Loop]:
    """The innermost ones."""
    places = {line[:-1]: index for index, line in enumerate(lines) if line.endswith(":")}
    spans = [(places[word], index) for index, line in enumerate(lines) for word in line.split()[1:] if word in places]
    spans = [(first, last) for first, last in spans if first < last and lines[last].startswith("j")]
    inner = [
        span
        for span in spans
        if not any(span != other and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    return [Loop(tuple(lines[first : last + 1])) for first, last in inner]


def find_loop(loops: Sequence[Loop], *instructions: str, without: str = "nothing") -> Loop:
    """Of those with all of these instructions and not the other, the one that multiplies most."""
    found = (
        loop
        for loop in loops
        if all(name in str(loop.lines) for name in instructions) and without not in str(loop.lines)
    )
    return max(found, key=lambda loop: loop.products)


def count_cycles(analyser: str, cpu: str, loop: Loop) -> float:
    """Of one turn."""
    command = [analyser, "-mtriple=x86_64", f"-mcpu={cpu}", f"-iterations={TURNS}", "-"]
    done = subprocess.run(command, input="\n".join(loop.lines), capture_output=True, text=True, check=True)
    return int(done.stdout.partition("Total Cycles:")[2].split()[0]) / TURNS


def judge(analyser: str, isa: str, dtype: str, loop: Loop) -> list[str]:
    cells = []
    for cpu, isas in CPUS.items():
        if isa not in isas or loop.has_tiles:
            cells.append("-")
            continue
        cycles = count_cycles(analyser, cpu, loop)
        ideal = loop.products / macs_per_cycle(isa, dtype, halves_512=cpu == "znver4")
        cells.append(f"{cycles:.1f}, {ideal:.1f}, {ideal / cycles:.0%}")
    return [isa, dtype, str(len(loop.instructions)), str(loop.products), *cells]


def find_attention(assembly: str, dtype: str) -> dict[str, tuple[Loop, float]]:
    """By what they are for: the loops of a block of keys, and how often each turns."""

    def name_functions(pattern: str) -> list[str]:
        # Copies that the compiler made for sums, whose rows lie at fixed distances, have longer names.
        return sorted(re.findall(rf"^(_Z\S*{pattern}\S*):$", assembly, re.MULTILINE), key=len)

    (task,) = name_functions(f"{dtype.capitalize()}ProductsEE8run_task")
    own = list_loops(list_own_lines(assembly, task))
    many_keys = name_functions("score_keysILi12E" if dtype == "fp32" else r"multiply_rowsILi(?:12|32)E")
    products = [find_loop(list_loops(list_lines(assembly, function))) for function in many_keys]
    scores, sums = products[0], find_loop(own, "vfmadd", without="vminps") if dtype == "fp32" else products[-1]
    found = {
        "scores": (scores, KEYS * QUERIES * HEAD_DIM / scores.products),
        "largest": (find_loop(own, "vmaxps", without="vminps"), float(KEYS)),
        "weights": (find_loop(own, "vmaxps", "vminps"), float(KEYS)),
        "sums": (sums, KEYS * QUERIES * HEAD_DIM / sums.products),
    }
    if dtype == "bf16":
        found["scaling"] = find_loop(own, "vmulps (", without="vfmadd"), float(KEYS + HEAD_DIM)
        found["pairs"] = find_loop(own, "vpsrld $16, (", without="vfmadd"), KEYS / 2
    return found


def judge_attention(analyser: str, isa: str, dtype: str, loops: dict[str, tuple[Loop, float]]) -> list[list[str]]:
    """A row for each loop, and one for all."""
    rows, totals = [], dict.fromkeys(ATTENTION_CPUS, 0.0)
    for name, (loop, turns) in loops.items():
        rows.append([isa, dtype, name, str(len(loop.instructions)), f"{turns:.0f}"])
        for cpu, isas in ATTENTION_CPUS.items():
            least = loop.products / macs_per_cycle(isa, dtype, halves_512=False)
            cycles = turns * (least if loop.has_tiles or isa not in isas else count_cycles(analyser, cpu, loop))
            totals[cpu] += cycles
            rows[-1].append(f"{cycles:.0f}" if isa in isas else "-")
    sums = [f"{totals[cpu]:.0f}" if isa in isas else "-" for cpu, isas in ATTENTION_CPUS.items()]
    return [*rows, [isa, dtype, "all", "", "", *sums]]


def describe_tools(analyser: str) -> str:
    lines = [line.strip() for name in (find_compiler(), analyser) for line in list_version(name)]
    return "; ".join(line for line in lines if "version" in line or line.startswith(("c++", "g++")))


def list_version(program: str) -> list[str]:
    return run_compiler([program, "--version"]).splitlines()


def note(users: dict[tuple[str, ...], list[str]], loop: Loop, user: str) -> None:
    """Loops that are the same are listed once."""
    listing = tuple(re.sub(r"\.L\d+", "the beginning", line) for line in loop.instructions)
    users.setdefault(listing, []).append(user)


def main() -> None:
    analyser = next(filter(shutil.which, ("llvm-mca-16", "llvm-mca")), None)
    if analyser is None:
        raise SystemExit("bench.loops needs llvm-mca, of the package llvm")
    table, users = [HEADINGS], dict[tuple[str, ...], list[str]]()
    for isa in ISA_FLAGS:
        assembly = compile_loops(isa)
        for dtype in DTYPES:
            loop = find_loop(list_loops(list_lines(assembly, f"padless_peak_{dtype}")))
            table.append(judge(analyser, isa, dtype, loop))
            note(users, loop, f"{isa} {dtype}")
    attention = [ATTENTION_HEADINGS]
    for isa in ("amx", "avx512_bf16"):
        assembly = compile_loops(isa, "varlen_attention.cpp")
        for dtype in ("fp32", "bf16"):
            loops = find_attention(assembly, dtype)
            attention += judge_attention(analyser, isa, dtype, loops)
            for name, (loop, _) in loops.items():
                note(users, loop, f"{isa} attention {dtype} {name}")
    listings = ["\n    ".join([f"{', '.join(names)}:", *listing]) for listing, names in users.items()]
    text = "\n\n".join(
        [describe_tools(analyser), NOTE, format_table(table), ATTENTION_NOTE, format_table(attention), *listings]
    )
    print(text)
    (RESULTS / "inner-loops.txt").write_text(text + "\n")


if __name__ == "__main__":
    main()
