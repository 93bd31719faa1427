"""A second network like the first, soon."""

import copy

from torch import nn


def duplicate(network: nn.Module) -> nn.Module:
    """As `copy.deepcopy`, but sooner: every epoch of a small data set waits for it.

    Parameters, buffers, parts and the lists of hooks are the copy's own; what else a part holds,
    such as its stride, is shared, and must not be changed in place. What stands in two places of
    the network stands there as two in the copy.

    >>> first = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    >>> second = duplicate(first)
    >>> _ = second[0].weight.data.zero_()
    >>> bool(first[0].weight.any())
    True
    """
    twin = copy.copy(network)
    for name, value in vars(network).items():
        if isinstance(value, dict | set):  # of parameters, buffers, parts and hooks
            vars(twin)[name] = value.copy()
    for name, part in network._modules.items():
        twin._modules[name] = None if part is None else duplicate(part)
    for name, parameter in network._parameters.items():
        if parameter is not None:
            own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            twin._parameters[name] = own
    for name, buffer in network._buffers.items():
        twin._buffers[name] = None if buffer is None else buffer.clone()
    return twin
