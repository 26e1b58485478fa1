"""FLOPs of a function's matrix products and convolutions, counted before it is compiled.

XLA takes the body of a loop once, however often it runs, and needs the compiled program; this
takes it as often, and needs nothing but shapes: a full-size model is counted on a laptop.
"""

from collections.abc import Callable, Iterator
from math import prod

import jax


def matrix_flops(function: Callable, *shapes, trips: int = 1) -> int:
    """2 per multiply-add; zeros of a border or a dilation are multiplied like anything else.

    Of a branch the dearest arm counts; of a choice of platforms the default, and no platform's own
    detours. A loop whose length depends on data counts `trips` times.
    Convolutions that batches share (`batch_group_count`) are not understood.
    """
    return _in(jax.make_jaxpr(function)(*shapes).jaxpr, trips)


def _in(jaxpr, trips: int) -> int:
    return sum(_of(equation, trips) for equation in jaxpr.eqns)


def _of(equation, trips: int) -> int:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            return 2 * prod(lengths) * prod(equation.outvars[0].aval.shape)
        case "conv_general_dilated":
            assert params["batch_group_count"] == 1
            kernel, (outputs, *_) = equation.invars[1].aval, params["dimension_numbers"].rhs_spec
            return 2 * kernel.size // kernel.shape[outputs] * prod(equation.outvars[0].aval.shape)
        case "scan":
            return params["length"] * _in(params["jaxpr"].jaxpr, trips)
        case "while":
            return trips * _in(params["body_jaxpr"].jaxpr, trips)
        case "cond" if params.get("branches_platforms"):
            return _in(params["branches"][-1].jaxpr, trips)
        case "cond":
            return max(_in(arm.jaxpr, trips) for arm in params["branches"])
        case _:
            return sum(_in(inner, trips) for inner in _jaxprs(params.values()))


def _jaxprs(values) -> Iterator:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _jaxprs(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
