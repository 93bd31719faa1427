"""A network as an ONNX graph, each tensor under the name of the module that makes it.

Written out by hand rather than traced by an exporter: it takes milliseconds, the file is the same
whatever PyTorch made it, and a layer has one name everywhere, so that a difference can be located.
Opset 17, which every runtime of the last years reads, the one in browsers included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from mobilenetv2.classifier import Classifier
from mobilenetv2.errors import UserError
from mobilenetv2.network.folding import fold_norms
from mobilenetv2.network.mobilenetv2 import KerasPaddedConv2d, padding_of
from mobilenetv2.runtimes.installed import require

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
PREPARED, NORMALISED = "prepared", "normalised"
"""Names of the inputs: pictures 0…255 N×C×H×W, and the same after mean and deviation."""
FEATURES, LOGITS = "features", "logits"
"""Names of the outputs: the pooled features N×F, and the logits N×K."""


@dataclass
class Graph:
    """Nodes and constants of an ONNX graph under construction.

    Attributes:
        nodes: ``NodeProto`` in the order in which they run.
        constants: ``TensorProto``, the weights.
    """

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add an operation that is named like its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))

    def split(self, inputs: Sequence[str], outputs: Sequence[str], axis: int) -> None:
        """Add a division of a tensor along ``axis``."""
        from onnx import helper

        self.nodes.append(
            helper.make_node("Split", list(inputs), list(outputs), outputs[0], axis=axis)
        )

    def constant(self, name: str, values: Any) -> str:
        """Add a constant: float32 from a tensor or a number, or an array as it is."""
        from onnx import numpy_helper

        if not isinstance(values, np.ndarray):
            values = torch.as_tensor(values, dtype=torch.float32).detach().cpu().numpy()
        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name


def network_model(
    classifier: Classifier, *, normalise: bool, core: "onnx.ModelProto | None" = None
) -> "onnx.ModelProto":
    """The classifier's network, batch norms folded, as ONNX; outputs features and logits.

    Args:
        classifier: gives network and size.
        normalise: whether mean and deviation are part of the graph. The input is then ``prepared``,
            uint8 N×C×H×W, otherwise ``normalised``, float32 of the same shape.
        core: from ``normalised`` to ``logits`` in place of the classifier's own network.

    Raises:
        UserError: onnx is not installed, or the network has a module that is not known here.
    """
    require("onnx")
    from onnx import TensorProto, helper

    wanted = classifier.preprocessing
    shape: list[str | int | None] = ["N", wanted.channels, wanted.height, wanted.width]
    graph = Graph()
    if normalise:
        entry = helper.make_tensor_value_info(PREPARED, TensorProto.UINT8, shape)
        graph.node("Cast", [PREPARED], "pixels", to=TensorProto.FLOAT)
        add_normalisation(graph, classifier, "pixels")
    else:
        entry = helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, shape)
    classes: list[str | int | None] = ["N", len(classifier.labels)]
    outputs = [helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, classes)]
    if core is None:
        shape = ["N", add_network(graph, classifier)]
        outputs.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, shape))
    else:
        graph.nodes += core.graph.node
        graph.constants += core.graph.initializer
    return finished(graph, [entry], outputs)


def finished(graph: Graph, inputs: Sequence[Any], outputs: Sequence[Any]) -> "onnx.ModelProto":
    """The graph as a checked model."""
    import onnx
    from onnx import helper

    proto = helper.make_graph(graph.nodes, "mobilenetv2", inputs, outputs, graph.constants)
    model = helper.make_model(
        proto,
        producer_name="mobilenetv2",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def add_normalisation(graph: Graph, classifier: Classifier, pixels: str) -> None:
    """``pixels`` float32 0…255 to ``normalised``, with the factors of ``Classifier.normalize``."""
    mean, scale = classifier.normalisation()
    graph.node("Sub", [pixels, graph.constant("mean", mean)], "centred")
    graph.node("Mul", ["centred", graph.constant("scale", scale)], NORMALISED)


def add_network(graph: Graph, classifier: Classifier) -> int:
    """From ``normalised`` to ``features`` and ``logits``; gives the number of features."""
    wanted = classifier.preprocessing
    network = fold_norms(classifier.network).cpu()
    traced = fx.GraphModule(network, _LayerTracer().trace(network))
    with torch.inference_mode():
        ShapeProp(traced).propagate(torch.zeros(1, wanted.channels, wanted.height, wanted.width))
    modules = dict(traced.named_modules())
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    pooled = next(node for node in nodes if len(_shape(node)) == 2)  # the first that is no map
    names = {nodes[0]: NORMALISED}
    for node in nodes[1:]:
        inputs = [names[one] for one in node.all_input_nodes]
        module = modules.get(str(node.target))
        if isinstance(module, nn.Identity | nn.Dropout):
            names[node] = inputs[0]
            continue
        output = {pooled: FEATURES, nodes[-1]: LOGITS}.get(node) or _name(node)
        if module is None:
            _OPERATIONS[_operation(node)](graph, inputs, output)
        elif type(module) in _LAYERS:
            _LAYERS[type(module)](graph, module, inputs[0], output, _shape(node.all_input_nodes[0]))
        else:
            raise UserError(f"{node.target}: {type(module).__name__} cannot be exported")
        names[node] = output
    return _shape(pooled)[1]


class _LayerTracer(fx.Tracer):
    """Looks into blocks, not into layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _operation(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _name(node: fx.Node) -> str:
    """The module of a layer; for the sum of a block, the block's with what it does."""
    if node.op == "call_module":
        return str(node.target)
    last = str(node.all_input_nodes[-1].target)
    return f"{last.partition('.conv')[0]}.{_operation(node)}"


# ------------------------------------------------------------------------- layers


def _convolution(
    graph: Graph, layer: nn.Conv2d, pictures: str, output: str, shape: Sequence[int]
) -> None:
    left, right, above, below = padding_of(layer, *shape[2:])
    weights = [graph.constant(f"{output}.weight", layer.weight)]
    if layer.bias is not None:
        weights.append(graph.constant(f"{output}.bias", layer.bias))
    graph.node(
        "Conv",
        [pictures, *weights],
        output,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        pads=[above, left, below, right],
        group=layer.groups,
    )


def _relu6(graph: Graph, layer: nn.Module, pictures: str, output: str, _: Sequence[int]) -> None:
    bounds = [graph.constant(f"{output}.low", 0.0), graph.constant(f"{output}.high", 6.0)]
    graph.node("Clip", [pictures, *bounds], output)


def _batch_norm(
    graph: Graph, layer: nn.BatchNorm2d, pictures: str, output: str, _: Sequence[int]
) -> None:
    weights = [
        graph.constant(f"{output}.{name}", getattr(layer, name))
        for name in ("weight", "bias", "running_mean", "running_var")
    ]
    graph.node("BatchNormalization", [pictures, *weights], output, epsilon=layer.eps)


def _linear(graph: Graph, layer: nn.Linear, features: str, output: str, _: Sequence[int]) -> None:
    weights = [
        graph.constant(f"{output}.weight", layer.weight),
        graph.constant(f"{output}.bias", layer.bias),
    ]
    graph.node("Gemm", [features, *weights], output, transB=1)


def _pool(graph: Graph, layer: nn.Module, pictures: str, output: str, _: Sequence[int]) -> None:
    graph.node("GlobalAveragePool", [pictures], output)


def _mean(graph: Graph, inputs: Sequence[str], output: str) -> None:
    graph.node("GlobalAveragePool", inputs, f"{output}.map")
    graph.node("Flatten", [f"{output}.map"], output)


_LAYERS: dict[type[nn.Module], Callable[[Graph, Any, str, str, Sequence[int]], None]] = {
    nn.Conv2d: _convolution,
    KerasPaddedConv2d: _convolution,
    nn.ReLU6: _relu6,
    nn.BatchNorm2d: _batch_norm,
    nn.Linear: _linear,
    nn.AdaptiveAvgPool2d: _pool,  # to 1 × 1, the only use
}
_OPERATIONS: dict[str, Callable[[Graph, Sequence[str], str], None]] = {
    "add": lambda graph, inputs, output: graph.node("Add", inputs, output),
    "mean": _mean,
    "flatten": lambda graph, inputs, output: graph.node("Flatten", inputs, output),
}
