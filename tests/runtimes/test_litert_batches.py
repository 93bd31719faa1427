"""LiteRT files that take batches, and files for one picture alone; the library is a double."""

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mobilenetv2.runtimes import sessions


class Interpreter:
    """Doubles numbers, for any batch or for one picture alone."""

    for_one = False
    started = 0

    def __init__(self, **_: Any) -> None:
        type(self).started += 1
        self.shape = (1, 2)

    def allocate_tensors(self) -> None:
        if self.for_one and self.shape[0] != 1:
            raise RuntimeError("num_input_elements != num_output_elements")

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"index": 0, "shape": np.array(self.shape)}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"index": 1}]

    def resize_tensor_input(self, _: int, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def set_tensor(self, _: int, values: np.ndarray) -> None:
        if values.shape[1] != 2:
            raise RuntimeError("another size")
        self.values = values

    def invoke(self) -> None:
        self.values = 2 * self.values

    def get_tensor(self, _: int) -> np.ndarray:
        return self.values


@pytest.fixture(params=[False, True], ids=["any batch", "one picture"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Interpreter]:
    class Here(Interpreter):
        for_one, started = request.param, 0

    library = ModuleType("ai_edge_litert.interpreter")
    library.Interpreter = Here  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ai_edge_litert", ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", library)
    monkeypatch.setattr(sessions, "require", lambda *_: None)
    return Here


def test_batches_of_any_size(kind: type[Interpreter]) -> None:
    run = sessions.litert_session(b"", "logits")
    for count in (1, 3, 5, 1):
        inputs = np.arange(2.0 * count).reshape(count, 2)
        np.testing.assert_array_equal(run(inputs)["logits"], 2 * inputs)
    assert kind.started == (2 if kind.for_one else 1)


def test_what_fails_for_one_picture_fails(kind: type[Interpreter]) -> None:
    run = sessions.litert_session(b"", "logits")
    for count in (1, 2):
        with pytest.raises(RuntimeError, match="another size"):
            run(np.zeros((count, 3)))
