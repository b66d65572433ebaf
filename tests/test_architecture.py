"""The layout of the house: who may import whom, and how large a page may grow.

Layers, from the ground up; a module may import what lies below it, never what lies beside or above it:

- 0 nouns, knobs, plugs, within which the order is schema, atomic, paper and mapped, then registry, spec,
  partitions, weights and knobs, then options
- 1 parts and sockets: each part for itself, a plug in its socket's folder
- 2 assemblies, 3 stages, 4 the door
"""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import avfuse

ROOT = Path(avfuse.__file__).parent
PLUGS = ("corpora", "encoders", "engines", "formats", "fusion", "metrics", "stores")
SOCKETS = (*PLUGS, "commands")
LAYERS = {
    "__init__": (0, 0),  # imports lazily, by name
    "schema": (0, 0),
    "ahead": (0, 0),
    "atomic": (0, 0),
    "paper": (0, 0),
    "sealed": (0, 0),
    "clips": (0, 1),
    "weights": (0, 1),
    "registry": (0, 1),
    "spec": (0, 1),
    "partitions": (0, 1),
    "knobs": (0, 1),
    "windows": (0, 1),
    "options": (0, 2),
    "cache_options": (0, 3),
    **dict.fromkeys(
        (
            "timeline",
            "container",
            "areas",
            "crops",
            "encoding",
            "runs",
            "device",
            "synthesis",
            "views",
            "augment",
            "arrays",
            "batching",
            "stopwatch",
        ),
        (1, 0),
    ),
    **dict.fromkeys(("protocols", "statistics", "submission", *PLUGS), (1, 0)),
    **dict.fromkeys(("cached", "declarations", "detection", "ledger", "reasons", "sound", "survey"), (1, 1)),
    **dict.fromkeys(("cache", "mapping", "media", "faces"), (1, 2)),
    **dict.fromkeys(("writer", "gathering", "gpu_decoding"), (1, 3)),
    **dict.fromkeys(
        ("dataset", "losses", "scores", "checkpoint", "inspection", "footage", "overlapping", "alignment"), (2, 0)
    ),
    **dict.fromkeys(("comparison", "moments", "passes", "verification", "hdf5"), (2, 1)),
    "findings": (2, 1),
    "networks": (2, 1),
    "worker": (2, 2),
    "preparation": (2, 3),
    "lengths": (2, 0),
    "sizing": (2, 2),
    "probing": (2, 3),
    "planning": (3, 0),
    "notes": (2, 2),
    "cost": (2, 2),
    **dict.fromkeys(("extract", "train", "report", "demo", "published", "audit", "predict"), (3, 0)),
    **dict.fromkeys(("upkeep", "leftovers", "inventory", "agreement", "foreign", "shrinking"), (3, 0)),
    "terminal": (4, 0),
    "commands": (4, 1),
    "cli": (4, 2),
    "__main__": (4, 3),
}
# What a stage never reaches, directly or through others.
WALLS = {
    "train": {"media", "faces", "detection", "crops", "encoders", "corpora", "extract", "report", "demo"},
    "extract": {"fusion", "losses", "metrics", "dataset", "checkpoint", "runs"},
    "planning": {"fusion", "losses", "metrics", "dataset", "checkpoint", "runs"},
    "audit": {"faces", "detection", "crops", "encoders", "fusion", "cache", "dataset", "checkpoint", "runs", "device"},
    "predict": {"media", "faces", "detection", "crops", "encoders", "corpora", "extract", "train", "report", "demo"},
    "report": {
        "media",
        "faces",
        "detection",
        "crops",
        "encoders",
        "corpora",
        "fusion",
        "checkpoint",
        "cache",
        "device",
    },
}
UNTESTED = {"__init__", "__main__", "cli"}  # their tests are test_architecture.py and test_end_to_end.py
DOOR = {"__main__", "cli", "commands", "terminal"}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60
PAGES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    """Return the dotted name of a module inside avfuse; a package by its folder, avfuse itself by ``__init__``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {name_of(path): path for path in PAGES}
every_module = pytest.mark.parametrize("name", list(MODULES))


def imported(name: str, node: ast.AST) -> set[str]:
    """Return the modules inside avfuse that one import statement names."""
    if isinstance(node, ast.Import):
        dotted = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name} line {node.lineno}: imports are absolute"
        dotted = {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    else:
        return set()
    inside = {item.removeprefix("avfuse.") for item in dotted if item.startswith("avfuse.")} & set(MODULES)
    if "avfuse" in dotted and not inside:  # avfuse itself, for its version
        return {"__init__"}
    return inside


def imports_of(name: str) -> set[str]:
    nodes = ast.walk(tree_of(MODULES[name]))
    return {target for node in nodes for target in imported(name, node)} - {name}


def bone_of(name: str) -> str:
    return name.partition(".")[0]


def is_allowed(importer: str, target: str) -> bool:
    if bone_of(importer) == bone_of(target):
        return bone_of(importer) in SOCKETS
    return LAYERS[bone_of(importer)] > LAYERS[bone_of(target)]


@every_module
def test_every_module_has_its_layer(name: str) -> None:
    assert bone_of(name) in LAYERS, "give the new bone its layer, here and in the house's plan"
    assert "." not in name or bone_of(name) in SOCKETS, "only a socket is a folder"


@every_module
def test_imports_point_downwards(name: str) -> None:
    sideways = sorted(target for target in imports_of(name) if not is_allowed(name, target))
    if name == "__init__":  # avfuse names for type checkers what it imports on first use
        sideways = []
    assert not sideways, f"{name} imports {', '.join(sideways)}, which is beside or above it"


def test_every_layer_is_lived_in() -> None:
    assert set(LAYERS) == {bone_of(name) for name in MODULES}


def test_no_cycle() -> None:
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a cycle: {' > '.join((*way, name))}"
        if name not in done:
            for target in imports_of(name) - {"__init__"}:
                visit(target, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("stage", list(WALLS))
def test_side_walls(stage: str) -> None:
    reached, ahead = set(), {stage}
    while ahead:
        name = ahead.pop()
        reached.add(name)
        ahead |= imports_of(name) - reached - {"__init__"}
    behind = {bone_of(name) for name in reached} & WALLS[stage]
    assert not behind, f"{stage} reaches {', '.join(sorted(behind))}"


@every_module
def test_stages_reach_plugs_through_the_registry(name: str) -> None:
    if LAYERS[bone_of(name)][0] >= 3:
        plugs = {target for target in imports_of(name) if "." in target and bone_of(target) in PLUGS}
        assert not plugs, f"{name} imports {', '.join(sorted(plugs))} instead of asking registry.load"


@every_module
def test_imports_stand_at_the_top(name: str) -> None:
    functions = [node for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.FunctionDef)]
    hidden = [
        f"{name} line {node.lineno}"
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not hidden or bone_of(name) in DOOR


@every_module
def test_only_the_door_talks(name: str) -> None:
    called = [node.func for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Call)]
    names = {func.id for func in called if isinstance(func, ast.Name)}
    names |= {
        f"{f.value.id}.{f.attr}" for f in called if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name)
    }
    said = names & {"print", "exit", "sys.exit", "os._exit", "logging.basicConfig", "click.echo"}
    assert not said or bone_of(name) in DOOR, f"{name} calls {', '.join(sorted(said))}"
    used = {
        alias.name for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, ast.Import) for alias in node.names
    }
    assert "click" not in used or bone_of(name) in DOOR


@every_module
def test_pages_stay_short(name: str) -> None:
    num_lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_MODULE_LINES, f"{name} has {num_lines} lines: what in it is a page of its own?"


@every_module
def test_functions_stay_short(name: str) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(tree_of(MODULES[name])) if isinstance(node, kinds)]
    long = [
        f"{f.name} ({f.end_lineno - f.lineno + 1})" for f in functions if f.end_lineno - f.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long, f"{name}: {', '.join(long)} lines"


def test_every_bone_and_socket_has_its_tests() -> None:
    bones = {bone_of(name) for name in MODULES} - UNTESTED
    here = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    missing = sorted(bones - here)
    assert not missing, f"no tests/test_{', test_'.join(missing)}.py"


LIGHT = (  # one after the other in one process: what a later one must not bring along, an earlier one must not either
    ("import avfuse", ("torch", "zarr", "av", "click")),
    ("import avfuse; avfuse.UsageError, avfuse.ExtractOptions, avfuse.Annotation", ("torch", "zarr", "av")),
    ("from avfuse.cli import cli; cli(['--help'], standalone_mode=False)", ("torch", "zarr", "av", "scipy")),
    ("from avfuse.cli import cli; cli(['extract', '--help'], standalone_mode=False)", ("torch", "zarr", "av")),
    ("import avfuse.report", ("torch", "zarr", "av")),
    ("import avfuse.audit", ("torch", "zarr", "facenet_pytorch")),
    ("import avfuse.runs", ("torch",)),
)
WITH_TORCH = (("import avfuse.train", ("av", "facenet_pytorch", "torchvision", "torchaudio")),)


@pytest.mark.parametrize("programs", [LIGHT, WITH_TORCH])
def test_heavy_libraries_wait_until_they_are_needed(programs: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    ask = f"""
import sys
for program, absent in {programs!r}:
    exec(program)
    came = [name for name in absent if name in sys.modules]
    if came:
        sys.exit(f"{{program}}: {{', '.join(came)}} came along")
"""
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("PASSIVE", "1000")),
        ({"GOMP_SPINCOUNT": "5"}, ("PASSIVE", "5")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
    ],
)
def test_how_idle_threads_wait_is_set_unless_the_user_has_set_it(
    given: dict[str, str], expected: tuple[str, str | None]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    script = f"import avfuse, os; print(tuple(map(os.environ.get, {names})))"
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == str(expected)
