"""A network that computes batches of some sizes as networks made for these sizes, all in one with the weights once.

Where sizes change from run to run, as they do in a server, a network for batches of any size prepares itself anew for
each (measured with a CNN of 14 MB, CPU time an image: 930 us, 350 to 460 where the size stays), and compiled for each
size by itself has as many copies of its weights, which push one another out of the processor's cache (600 to 720). As
branches of one network, chosen by the rows that come: 440 to 550, and 70 MB instead of 100. OpenVINO keeps weights that
several branches read once, by their names and addresses; clones of a network agree in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.backend.openvino.network import runtime, runtime_error

#: Sizes that have a branch; larger batches gain nothing, they run as several of these.
SIZES: Final = (4, 3, 2, 1)
#: Weights of a network that is worth it: branches may lay some of them out in their own ways.
MOST_BYTES: Final = 64 << 20
#: Multiply-adds of convolutions in one row: about 100 us on one core, beside which another run is cheap. Networks of
#: matrix products alone read all their weights for each run, whatever its rows: they are to have large ones.
LEAST_WORK: Final = 4_000_000
#: Convolutions, and how many dimensions their kernels have for output channels (and groups).
_CONVOLUTIONS: Final = {"Convolution": 1, "GroupConvolution": 2}


def sizes_for(max_batch_size: int, weights: int, work: int) -> tuple[int, ...]:
    """The sizes that are to have a branch, largest first; none: not worth it. `weights` in bytes, `work` as for
    `LEAST_WORK`."""
    if weights > MOST_BYTES or work < LEAST_WORK:
        return ()
    return tuple([size for size in SIZES if size <= max_batch_size])


def measure(network: Any) -> tuple[int, int]:
    """Bytes of weights, and multiply-adds of all convolutions for one row; 0 where inputs have dimensions of any size,
    or where the network remembers something from run to run.

    Raises InferError where it does not take one row.
    """
    shapes = [port.get_partial_shape() for port in network.inputs]
    if network.get_sinks() or not all(
        shape.rank.is_static and all(each.is_static for each in list(shape)[1:]) for shape in shapes
    ):
        return 0, 0
    nodes = _with_rows(network, 1).get_ops()
    constants = [node.output(0) for node in nodes if node.get_type_name() == "Constant"]
    weights = sum([math.prod(each.get_shape()) * each.get_element_type().size for each in constants])
    return int(weights), sum([_work(node) for node in nodes if node.get_type_name() in _CONVOLUTIONS])


def with_branches(network: Any, sizes: Sequence[int]) -> Any:
    """The network with a branch for batches of each of `sizes`, and one for any other; ports keep their order.

    Raises InferError where it does not take batches of these sizes.
    """
    made = network.clone()
    for size in reversed(sizes):
        try:
            made = _either(network, size, made)
        except RuntimeError as error:
            raise runtime_error("setting batch size", error) from None
    return made


def _either(network: Any, size: int, rest: Any) -> Any:
    """`network` made for `size` rows where so many come, `rest` for others."""
    ov = runtime()
    ops = ov.opset13
    inputs = [ops.parameter(port.get_partial_shape(), port.get_element_type()) for port in network.inputs]
    first = ops.constant(np.array(0, np.int64))
    rows = ops.gather(ops.shape_of(inputs[0]), first, first)
    choice = ops.if_op(ops.equal(rows, ops.constant(np.array(size, np.int64))).output(0))
    branch = _branch(network, size)
    choice.set_then_body(branch)
    choice.set_else_body(rest)
    for mine, then, other in zip(inputs, branch.get_parameters(), rest.get_parameters(), strict=True):
        choice.set_input(mine.output(0), then, other)
    results = [
        ops.result(choice.set_output(then, other))
        for then, other in zip(branch.get_results(), rest.get_results(), strict=True)
    ]
    return ov.Model(results, inputs)


def _branch(network: Any, size: int) -> Any:
    """The network for batches of `size` rows, whose inputs are declared for any: what holds it makes them so."""
    ov = runtime()
    ops = ov.opset13
    made = _with_rows(network, size)
    inputs = []
    for port, inner in zip(network.inputs, made.get_parameters(), strict=True):
        outer = ops.parameter(port.get_partial_shape(), port.get_element_type())
        shape = np.array(list(inner.get_partial_shape().to_shape()), np.int64)
        fixed = ops.reshape(outer, ops.constant(shape), special_zero=False)
        for reader in list(inner.output(0).get_target_inputs()):
            reader.replace_source_output(fixed.output(0))
        inputs.append(outer)
    return ov.Model(made.get_results(), inputs)


def _with_rows(network: Any, rows: int) -> Any:
    """A copy for batches of so many rows; it shares the weights. Raises InferError."""
    made = network.clone()
    try:
        made.reshape({index: [rows, *list(port.get_partial_shape())[1:]] for index, port in enumerate(network.inputs)})
    except RuntimeError as error:
        raise runtime_error("setting batch size", error) from None
    return made


def _work(node: Any) -> int:
    """Of a convolution: each output element sums over the input channels (of its group) and the kernel."""
    output, kernel = node.output(0).get_partial_shape(), node.input_value(1).get_partial_shape()
    if output.is_dynamic or kernel.is_dynamic:
        return 0
    per_element = list(kernel.to_shape())[_CONVOLUTIONS[node.get_type_name()] :]
    return int(math.prod(output.to_shape()) * math.prod(per_element))
