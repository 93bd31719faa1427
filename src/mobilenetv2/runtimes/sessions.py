"""Models of other libraries as functions from arrays to arrays.

A session is made once, which compiles the model, and then called with batches of any size.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobilenetv2.cores import available_cores
from mobilenetv2.errors import ModelFileError
from mobilenetv2.runtimes.installed import require

if TYPE_CHECKING:
    import openvino

Array = np.ndarray[Any, np.dtype[Any]]
Session = Callable[[Array], dict[str, Array]]
"""One input in, every output by name."""


def onnxruntime_session(
    model: bytes | Path, outputs: Sequence[str] = (), workers: int = 1
) -> Session:
    """An ONNX model in ONNX Runtime, on the CPU.

    Args:
        model: the file, or its contents.
        outputs: which to compute; all of them if empty.
        workers: threads that will call at the same time, each of which then computes alone; with
            one, a call takes all cores.

    Raises:
        UserError: ONNX Runtime is not installed.
        ModelFileError: the model cannot be read, for example because its weights lie in a second
            file that is missing.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings are about its own optimisations
    if workers > 1:
        options.intra_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a class of its own for each reason, none of them public
        name = "the ONNX model" if isinstance(model, bytes) else str(model)
        raise ModelFileError(f"{name}: ONNX Runtime cannot read it ({_short(error)})") from error
    entry = session.get_inputs()[0].name
    names = list(outputs) or [output.name for output in session.get_outputs()]

    def run(inputs: Array) -> dict[str, Array]:
        return dict(zip(names, session.run(names, {entry: inputs}), strict=True))

    return run


def openvino_core() -> "openvino.Core":
    """OpenVINO; a process has only one.

    Each gives the thread that first uses its CPU plugin, if only to ask for a property, a stack of
    its own for signals. Where both of two have gone, the older one first, the thread is left with a
    stack that is no longer there, and the next Ctrl-C ends in a segmentation fault.

    Raises:
        UserError: OpenVINO is not installed.
    """
    require("openvino")
    with _MAKING_CORE:
        return _only_core()


_MAKING_CORE = threading.Lock()


@functools.cache  # alone, it would let threads that come at the same time make one each
def _only_core() -> "openvino.Core":
    import openvino

    return openvino.Core()


def openvino_computes_in_bf16() -> bool:
    """Whether this processor does; others take float32, or emulate it.

    Raises:
        UserError: OpenVINO is not installed.
    """
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_session(
    model: bytes | Path, precision: str = "f32", outputs: Sequence[str] = (), workers: int = 1
) -> Session:
    """An ONNX model or an OpenVINO file (.xml) in OpenVINO, on the CPU.

    Args:
        model: the file, or the contents of an ONNX file.
        precision: "f32" or "bf16", of the arithmetic. OpenVINO's own default is the fastest that
            the CPU has, which on recent ones is bf16 and does not give the same answers.
        outputs: which to give; all of them if empty.
        workers: threads that will call at the same time, as for ONNX Runtime.

    Raises:
        UserError: OpenVINO is not installed.
        ModelFileError: the model cannot be read.
    """
    core = openvino_core()
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    if workers > 1:
        settings |= {"NUM_STREAMS": workers, "INFERENCE_NUM_THREADS": workers}
    try:
        compiled = core.compile_model(
            core.read_model(model if isinstance(model, bytes) else str(model)),
            "CPU",
            settings,
        )
    except RuntimeError as error:
        name = "the model" if isinstance(model, bytes) else str(model)
        raise ModelFileError(f"{name}: OpenVINO cannot read it ({_short(error)})") from error
    own = threading.local()  # a request serves one thread at a time
    names = list(outputs) or [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Array) -> dict[str, Array]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        request = own.request
        request.infer([inputs], share_inputs=True)
        return {name: request.get_tensor(name).data.copy() for name in names}

    return run


def litert_session(model: bytes | Path, output: str, workers: int = 1) -> Session:
    """A LiteRT file with one output, on the CPU; batches of any size, resized as they come.

    Where the file's operations are for one picture alone, pictures pass one after the other.

    Args:
        model: the file, or its contents.
        output: what its output is called here.
        workers: threads that will call at the same time, as for ONNX Runtime.

    Raises:
        UserError: LiteRT is not installed.
        ModelFileError: the model cannot be read.
    """
    require("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    threads = 1 if workers > 1 else available_cores()

    def start() -> Any:
        try:
            interpreter = Interpreter(**source, num_threads=threads)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            name = "the model" if isinstance(model, bytes) else str(model)
            raise ModelFileError(f"{name}: LiteRT cannot read it ({_short(error)})") from error
        return interpreter

    own = threading.local()  # an interpreter serves one thread at a time
    own.interpreter, own.resizes = start(), True

    def answers(inputs: Array) -> Array:
        entry = own.interpreter.get_input_details()[0]
        if tuple(entry["shape"]) != inputs.shape:
            own.interpreter.resize_tensor_input(entry["index"], inputs.shape)
            own.interpreter.allocate_tensors()
        own.interpreter.set_tensor(entry["index"], inputs)
        own.interpreter.invoke()
        found: Array = own.interpreter.get_tensor(own.interpreter.get_output_details()[0]["index"])
        return found

    def run(inputs: Array) -> dict[str, Array]:
        if not hasattr(own, "interpreter"):
            own.interpreter, own.resizes = start(), True
        if own.resizes:
            try:
                return {output: answers(inputs)}
            except RuntimeError:  # some converters write down how many numbers there are
                if len(inputs) < 2:
                    raise
                own.interpreter, own.resizes = start(), False
        return {output: np.concatenate([answers(one[None]) for one in inputs])}

    return run


def _short(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
