"""Imports go one way, from the command line down to the settings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenetv2

ROOT = Path(mobilenetv2.__file__).parent
LAYERS = {
    "config": 0, "errors": 0, "files": 0, "settings": 0,
    "network": 1, "data": 1,
    "classifier": 2,
    "evaluation": 3,
    "training": 4,
    "shipping": 5,
    "terminal": 6, "cli": 6, "__main__": 7,
}  # fmt: skip
HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "onnx", "onnxruntime", "openvino", "h5py")
MODULES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py"
)


def imports(path: Path, *, top_only: bool = False) -> list[str]:
    tree = ast.parse((ROOT / path).read_text())
    nodes = tree.body if top_only else ast.walk(tree)
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "mobilenetv2" or len(parts) < 2 or parts[1] not in LAYERS:
            continue
        there = parts[1]
        if there != here:
            assert LAYERS[there] <= LAYERS[here], f"{path} imports {name}, which is above it"
            assert {here, there} != {"network", "data"}, f"{path}: network and data stay apart"


def test_every_room_has_a_layer() -> None:
    assert {room(path) for path in MODULES} <= set(LAYERS)


def test_no_circles_inside_a_folder() -> None:
    names = {".".join(("mobilenetv2", *path.with_suffix("").parts)): path for path in MODULES}
    arrows = {
        name: {there for there in imports(path, top_only=True) if there in names} - {name}
        for name, path in names.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for there in arrows[name]:
                visit(there, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


@pytest.mark.parametrize("module", ["mobilenetv2", "mobilenetv2.cli", "mobilenetv2.config"])
def test_importing_is_cheap(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


def test_no_unsafe_loading() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), path
            if called == "torch.load":
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", path
            shells = [word for word in node.keywords if word.arg == "shell"]
            assert not shells, path
