"""Imports go one way, from the command line down to the settings."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mobilenetv2

ROOT = Path(mobilenetv2.__file__).parent
LAYERS = {
    "cache": 0, "command_config": 0, "complaints": 0, "config": 0, "cores": 0, "distributed": 0,
    "errors": 0, "extras": 0, "files": 0, "intervals": 0, "locks": 0, "machine_memory": 0,
    "printable": 0, "rendezvous": 0, "seals": 0, "settings": 0,
    "model_file": 1, "network": 1, "data": 1,
    "classifier": 2,
    "runtimes": 3, "evaluation": 3,
    "training": 4,
    "shipping": 5,
    "terminal": 6, "cli": 6, "__main__": 7,
}  # fmt: skip
HEAVY = ("torch", "torchvision", "matplotlib", "sklearn", "onnx", "onnxruntime", "openvino", "h5py")
OPTIONAL = {
    "matplotlib", "sklearn", "onnx", "onnxruntime", "onnxscript", "openvino", "nncf",
    "tensorboard", "tensorflow", "keras", "h5py",
}  # fmt: skip
MODULES = sorted(
    path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.name != "__init__.py"
)


def imports(path: Path, *, top_only: bool = False) -> list[str]:
    tree = ast.parse((ROOT / path).read_text())
    nodes = at_import(tree) if top_only else ast.walk(tree)
    found: list[str] = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def at_import(tree: ast.AST) -> list[ast.stmt]:
    """The statements that run when a module is imported: not functions, not type checks."""
    found: list[ast.stmt] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.stmt):
            found.append(node)
        found += at_import(node)
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
        name: {there for there in imports(path) if there in names} - {name}
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


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_heavy_libraries_are_imported_where_they_are_needed(path: Path) -> None:
    found = {name.split(".")[0] for name in imports(path, top_only=True)}
    assert not found & OPTIONAL, f"{path} imports {found & OPTIONAL} at the top"
    if room(path) in ("command_config", "config", "settings", "errors", "files", "seals"):
        assert not found & {"torch", "torchvision", "numpy", "PIL"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_are_absolute_and_no_dumping_grounds(path: Path) -> None:
    tree = ast.parse((ROOT / path).read_text())
    relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, "a relative import would slip past the arrows"
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    assert "matplotlib.pyplot" not in imports(path)
    starred = [name for name in imports(path) if name.endswith(".*")]
    assert not starred


def test_the_rules_would_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "bad.py").write_text(
        "try:\n    import sklearn\nexcept ImportError:\n    pass\n"
        "def f():\n    from mobilenetv2.data import draws\n    import onnx\n"
    )
    bad = Path("network") / "bad.py"
    with pytest.raises(AssertionError, match="stay apart"):
        test_imports_go_down(bad)
    assert imports(bad, top_only=True) == ["sklearn"]
    (tmp_path / "network" / "bad.py").write_text("from mobilenetv2.training.train import train\n")
    with pytest.raises(AssertionError, match="which is above it"):
        test_imports_go_down(bad)
