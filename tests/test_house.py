"""How the package is built: layers, sizes, documentation, types, and what it may not hold. Printed with `pytest -s`."""

from __future__ import annotations

import ast
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "visionpeft"

LAYERS = (
    "cli", "demo", "run", "delivery", "doctor", "config", "tasks", "training", "inference", "evaluation", "data",
    "files", "compute", "models", "adapters", "progress", "safefile", "errors",
)  # fmt: skip
"""Top first: a layer imports only from itself and from those after it."""

FREE = ("__init__", "__main__", "assets")
"""Parts of the package outside the order: they import nothing of it when loaded, or only the top."""

PEFT_MAY = {"visionpeft/adapters/methods.py", "visionpeft/adapters/layers.py"}
MAX_FILE, MAX_FUNCTION, P95_FUNCTION, MEDIAN_FUNCTION = 400, 80, 45, 10
IMPORT_SECONDS, HELP_SECONDS = 0.3, 0.5

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(NAMES, FILES, strict=True)}


def layer(name: str) -> str:
    return name.split("/")[1].removesuffix(".py")


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere in it, as a dotted name, with the line."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = name.removesuffix(".py").split("/")[: -node.level] if node.level else []
            module = ".".join([*here, *([node.module] if node.module else [])])
            if module == "visionpeft":
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield module, node.lineno


def upward(name: str) -> list[str]:
    """Imports of a file that go up the layers."""
    here = layer(name)
    found = []
    for module, line in imports(name):
        parts = module.split(".")
        there = parts[1] if parts[0] == "visionpeft" and len(parts) > 1 else here
        if there in LAYERS and LAYERS.index(there) < LAYERS.index(here):
            found.append(f"{name}:{line}: {here} imports {there}, which stands above it")
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, node


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions, classes and methods, outside private classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    for holder in (tree, *classes):
        yield from (n for n in holder.body if isinstance(n, kinds) and not n.name.startswith("_"))


def test_every_part_of_the_package_has_its_layer():
    assert sorted({layer(name) for name in NAMES} - {*LAYERS, *FREE}) == []


def test_imports_go_down_the_layers():
    checked = [name for name in NAMES if layer(name) not in FREE]
    breaches = [breach for name in checked for breach in upward(name)]
    print(f"\nlayers: {len(checked)} files, {len(breaches)} imports that go up")
    assert breaches == []


def test_the_layer_check_sees_an_upward_import(monkeypatch: pytest.MonkeyPatch):
    bad = "visionpeft/files/bad.py"
    for text in (
        "from visionpeft.cli import a",
        "import visionpeft.cli.a",
        "from ..cli import a",
        "from visionpeft import cli",
    ):
        monkeypatch.setitem(TREES, bad, ast.parse(f"def f():\n    {text}\n"))
        assert upward(bad) == [f"{bad}:2: files imports cli, which stands above it"]


def test_only_two_files_import_peft():
    assert {name for name in NAMES for module, _ in imports(name) if module.split(".")[0] == "peft"} <= PEFT_MAY


def test_no_file_is_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in zip(NAMES, FILES, strict=True)}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_functions_are_short():
    lengths = sorted((node.end_lineno - node.lineno + 1, f"{where}:{node.lineno}") for where, node in functions())
    only = [length for length, _ in lengths]
    p95 = only[int(0.95 * (len(only) - 1))]
    print(f"\n{len(FILES)} files, {len(only)} functions: median {statistics.median(only):g}, p95 {p95}, max {only[-1]}")
    assert statistics.median(only) <= MEDIAN_FUNCTION
    assert p95 <= P95_FUNCTION
    assert [where for length, where in lengths if length > MAX_FUNCTION] == []


def test_public_names_are_documented():
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []
    named = [(f"{name}:{node.lineno} {node.name}", node) for name, tree in TREES.items() for node in public(tree)]
    assert [where for where, node in named if not ast.get_docstring(node)] == []


def test_functions_are_typed():
    untyped = []
    for name, node in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or node.returns is None:
            untyped.append(f"{name}:{node.lineno} {node.name}({', '.join(bare)})")
    assert untyped == []


def test_errors_are_exceptions_not_asserts():
    """Asserts vanish under `python -O`, and an except that names nothing hides what went wrong."""
    nodes = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]
    assert [f"{name}:{node.lineno}" for name, node in nodes if isinstance(node, ast.Assert)] == []
    handlers = [(name, node) for name, node in nodes if isinstance(node, ast.ExceptHandler)]
    assert [f"{name}:{node.lineno}" for name, node in handlers if node.type is None] == []


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


# Each word is cut in two, so that this file does not hold what it forbids.
REGISTRY = "|".join(
    a + b for a, b in [("py", r"pi\.org"), ("python", r"hosted\.org"), ("npm", r"js\.\w"), ("debian", r"\.org")]
)
PLACES = "|".join(
    a + b for a, b in [("/wo", "rk/"), ("/ro", r"ot\b"), ("/ho", r"me/\w"), ("/op", r"t/\w"), ("/Us", r"ers/\w")]
)


def test_nothing_names_a_machine_or_a_registry():
    pattern = re.compile(f"{REGISTRY}|(?<![\\w.])(?:{PLACES})")
    found = []
    for path in tracked():
        if path.is_file() and path.stat().st_size < 1_000_000 and b"\0" not in (data := path.read_bytes()):
            lines = data.decode("utf-8", "replace").splitlines()
            numbers = [number for number, line in enumerate(lines, 1) if pattern.search(line)]
            found += [f"{path.relative_to(ROOT)}:{number}" for number in numbers]
    assert found == []


def test_no_file_is_too_large_to_carry():
    assert [str(path) for path in tracked() if path.is_file() and path.stat().st_size > 16 * 2**20] == []


def least_seconds(*command: str, tries: int = 5) -> float:
    """Least processor time of a command over some tries: what it takes when the machine has nothing else to do."""
    found = []
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


def loaded_by(module: str) -> set[str]:
    """All modules that importing ``module`` loads."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_is_quick_and_light():
    seconds = least_seconds("-c", "import visionpeft")
    print(f"\nimport visionpeft: {seconds:.2f} s")
    assert seconds < IMPORT_SECONDS
    assert loaded_by("visionpeft") & {"torch", "diffusers", "transformers", "pydantic", "yaml"} == set()


def test_help_is_quick_and_light():
    seconds = least_seconds("-m", "visionpeft", "--help")
    print(f"\nvisionpeft --help: {seconds:.2f} s")
    assert seconds < HELP_SECONDS
    assert loaded_by("visionpeft.cli") & {"torch", "diffusers", "transformers", "numpy", "PIL"} == set()


def test_every_public_name_can_be_had():
    import visionpeft

    for name in visionpeft.__dir__():
        assert getattr(visionpeft, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = visionpeft.nothing
