"""The rules that keep the layers apart, read from the source alone: nothing is imported here, so it takes milliseconds.

    server -> models -> runtime

torch stays out of the server but for the processes that hold an engine, the web framework stays in the application.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("runtime", "models", "server")
"""Each may import those before it, and itself."""

FLOORS = {
    "wire": set(),
    "text": {"wire"},
    "audio": {"text"},
    "tasks": {"wire", "text", "audio"},
    "engine": {"wire", "tasks"},
    "http": {"wire", "text", "audio", "tasks"},
    "processes": {"wire", "text", "audio", "tasks", "engine", "http"},
}
"""Of the server: which of its folders each may import, beside itself and the ground floor."""
GROUND_FLOOR = {"api_keys", "config", "config_file", "errors", "metrics"}
"""Files of the server that all its folders may import, and that import no folder."""

ENGINE_PROCESSES = {
    "server.processes.engine_process",
    "server.processes.inline_process",
    "server.processes.graph_process",
    "server.processes.memory_process",
    "server.processes.building",
    "server.processes.building_process",
    "server.processes.compile_process",
    "server.processes.export_process",
    "server.processes.file_engine",
    "server.processes.opening",
    "server.processes.quantize_process",
}
"""The only modules of the server that know torch, concrete engines and model classes."""
KNOWS_ALL = ENGINE_PROCESSES | {"server.processes.launch"}
CONTRACT = {
    *("runtime.batch", "runtime.engine", "runtime.config", "runtime.precision_choice", "runtime.compile_cache"),
    *("runtime.kv_cache.blocks", "runtime.kv_cache.examples", "runtime.kv_cache.newest"),
}
TORCH_FREE_MODELS = {"models.info", "models.source", "models.weight_files", "models.defaults", "models.keys"}
WEB_FRAMEWORKS = {"fastapi", "starlette"}
MAX_LINES = 400


class Import(NamedTuple):
    """`name` is the module, as far as it can be told from `from x import y`."""

    name: str
    line: int
    is_at_top: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(module: str) -> tuple[Import, ...]:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return tuple(walk_imports(tree, is_at_top=True))


def walk_imports(node: ast.AST, *, is_at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, is_at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, f"line {child.lineno}: imports are absolute here"
            for alias in child.names:
                inner = f"{child.module}.{alias.name}"
                yield Import(inner if inner in modules() else child.module, child.lineno, is_at_top)
        else:
            # `if TYPE_CHECKING`, `try` and functions alike: nothing but a module's own body is its top.
            yield from walk_imports(child, is_at_top=False)


def ours(module: str) -> set[str]:
    return {found.name for found in imports_of(module) if found.name in modules()}


def foreign(module: str) -> set[str]:
    """The top-level names of other people's packages that a module imports."""
    return {found.name.partition(".")[0] for found in imports_of(module) if found.name not in modules()}


def reach(module: str) -> set[str]:
    """All of our modules that importing this one imports; packages are imported on the way to their modules."""
    return walk(module, lambda name: {*ours(name), *(parent for parent in parents(name) if parent in modules())})


def walk(module: str, neighbours: Callable[[str], set[str]]) -> set[str]:
    """Everything that can be got to from `module`, itself included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += neighbours(name)
    return seen


def parents(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def test_there_are_modules() -> None:
    """A wrong path would let everything below pass."""
    assert {"runtime.program", "models.bert", "server.processes.launch", "server.http.api"} <= modules().keys()
    assert "torch" in foreign("runtime.program")


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_those_below(layer: str) -> None:
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    wrong = [
        f"{module}:{found.line} imports {found.name}"
        for module in modules()
        if module.partition(".")[0] == layer
        for found in imports_of(module)
        if found.name.partition(".")[0] in {*LAYERS, "tests", "bench", "loadtest"} - allowed
    ]
    assert not wrong


def floor_of(module: str) -> str:
    """The folder of the server that a module is in, or its own name on the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_servers_folders_import_only_those_below() -> None:
    """So `http` and `engine` never see each other: what they say to each other crosses the wire."""
    wrong = []
    for module in modules():
        if module.partition(".")[0] != "server" or module in ("server", "server.__main__"):
            continue
        floor = floor_of(module)
        allowed = GROUND_FLOOR | FLOORS.get(floor, set()) | ({floor} if floor in FLOORS else set())
        wrong += [
            f"{module}:{found.line} imports {found.name}"
            for found in imports_of(module)
            if found.name.startswith("server.") and floor_of(found.name) not in allowed
        ]
    assert not wrong


def test_server_has_these_folders_and_no_others() -> None:
    found = {floor_of(module) for module in modules() if module.startswith("server.")}
    assert found == {*FLOORS, *GROUND_FLOOR, "__main__"}


def test_only_tasks_know_their_names() -> None:
    """A new task is its file, its line in the registry, and its routes: nobody else asks which task it is.

    What a protocol calls an operation may be the same word.
    """
    names = {"embed", "sparse", "classify", "token_classify", "question_answering", "fill_mask", "generate"}
    wrong = []
    for module, path in modules().items():
        if not module.startswith("server.") or module.startswith("server.tasks."):
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        operations = {node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "operation_id"}
        constants = [node for node in nodes if isinstance(node, ast.Constant) and node not in operations]
        wrong += [f"{module}:{node.lineno}" for node in constants if node.value in names]
    assert not wrong


SHARED = {
    *("fields", "pooling_fields", "generation_fields", "generation_params"),
    *("statuses", "messages", "vectors", "logprobs", "health", "openai_errors", "openai_schemas", "cohere_schemas"),
}
"""Files of `server.http.api` that are no protocol's own: kinds of fields, and what errors look like."""
ON_ONE_PATH = {"rerank_either": {"rerank", "tei"}, "admin": {"tei"}}
"""Those that decide who is asked, and answer for two protocols at once."""


def test_no_protocol_knows_another() -> None:
    """A protocol's files have the same first word."""
    api = "server.http.api."
    wrong = []
    for module in modules():
        if not module.startswith(api):
            continue
        name = module.removeprefix(api)
        own = {name.partition("_")[0]} | ON_ONE_PATH.get(name, set())
        known = {found.removeprefix(api) for found in ours(module) if found.startswith(api)}
        others = {each for each in known - SHARED if each.partition("_")[0] not in own}
        wrong += [f"{name} imports {other}" for other in sorted(others)]
    assert not wrong


def test_server_sees_of_the_runtime_only_the_contract() -> None:
    wrong = {
        module: seen
        for module in modules()
        if module.startswith("server") and module not in KNOWS_ALL
        if (seen := {name for name in ours(module) if name.startswith("runtime")} - CONTRACT)
    }
    assert not wrong


def test_contract_needs_no_torch() -> None:
    for module in CONTRACT | TORCH_FREE_MODELS:
        assert "torch" not in all_foreign(module), module


def test_engines_open_what_was_compiled_without_what_compiles() -> None:
    """The exporter and the passes take a second and tens of megabytes of every engine process."""
    found = reach("server.processes.engine_process")
    assert "runtime.open" in found
    assert not found & {"runtime.build", "runtime.capture", "runtime.lower", "runtime.passes.pipeline", "models.load"}
    assert not any("sympy" in foreign(module) or "huggingface_hub" in foreign(module) for module in found)


def test_torch_stays_out_of_the_server() -> None:
    """Also what is imported by what is imported: an HTTP process that loads torch starts seconds later."""
    wrong = [
        module
        for module in modules()
        if module.startswith("server") and module not in ENGINE_PROCESSES and "torch" in all_foreign(module)
    ]
    assert not wrong


def all_foreign(module: str) -> set[str]:
    return {name for reached in reach(module) for name in foreign(reached)}


def test_web_framework_stays_in_the_application() -> None:
    wrong = [
        module for module in modules() if foreign(module) & WEB_FRAMEWORKS and not module.startswith("server.http.")
    ]
    assert not wrong


def test_pure_modules_are_pure() -> None:
    """What schedules and plans is tested without an event loop, a thread or an array library's device."""
    numbers = {
        "array",
        "bisect",
        "collections",
        "dataclasses",
        "functools",
        "heapq",
        "itertools",
        "math",
        "numpy",
        "typing",
    }
    for module in ("runtime.memory.lifetimes", "runtime.memory.planner", "runtime.memory.arena"):
        assert foreign(module) <= numbers - {"numpy"}, module
    for module in ("core_plan", "memory_plan"):
        assert foreign(f"server.processes.{module}") <= numbers, module
    queueing = ("job_queue", "running_set", "sequences", "packing", "partition")
    choosing = ("beam_search", "counters", "drafting", "logits_processors", "sampling_rows")
    for module in ("cost_model", "padded_costs", *(f"batchers.{name}" for name in (*queueing, *choosing))):
        module = f"server.engine.{module}"
        assert foreign(module) <= numbers, module


def test_imports_stand_at_the_top() -> None:
    """Where one inside a function or under TYPE_CHECKING seems needed, a type lives in the wrong file."""
    wrong = [
        f"{module}:{found.line} {found.name}"
        for module in modules()
        for found in imports_of(module)
        if not found.is_at_top
    ]
    assert not wrong


def test_no_cycles() -> None:
    for module in modules():
        for imported in ours(module):
            back = {name for name in reach_by_imports(imported) if name == module}
            assert not back, f"{module} imports {imported}, which leads back to it"


@cache
def reach_by_imports(module: str) -> frozenset[str]:
    return frozenset(walk(module, ours))


def test_no_folder_for_this_and_that() -> None:
    names = {part for module in modules() for part in module.split(".")}
    assert not names & {"utils", "util", "common", "core", "helpers", "misc"}


def test_files_are_short() -> None:
    long = {
        module: count
        for module, path in modules().items()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long


def test_transformers_is_never_needed_to_serve() -> None:
    for module in modules():
        assert not foreign(module) & {"transformers", "sentence_transformers"}, module


def test_every_module_says_what_it_does() -> None:
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert not text.strip() or ast.get_docstring(ast.parse(text)), module
