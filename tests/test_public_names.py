"""The public names are complete, sorted, and where they are said to be."""

import ast
from pathlib import Path

import mobilenetv2


def test_sorted_complete_and_importable() -> None:
    assert mobilenetv2.__all__ == sorted(mobilenetv2.__all__)
    assert set(mobilenetv2.__all__) == set(mobilenetv2._HOME)
    for name in mobilenetv2.__all__:
        thing = getattr(mobilenetv2, name)
        assert thing.__module__ == f"mobilenetv2.{mobilenetv2._HOME[name]}"
        assert thing.__doc__, f"{name} has no docstring"


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(mobilenetv2.__file__).read_text())
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    seen = {
        alias.name: node.module.removeprefix("mobilenetv2.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == mobilenetv2._HOME


def test_unknown_names_are_refused() -> None:
    assert not hasattr(mobilenetv2, "no_such_name")
    assert "train" in dir(mobilenetv2)
