"""Every known way to keep a sample with its measurement, by name.

An entry makes a `Method`, which makes a `Step`. A method that only corrects predictions is a
rule (`consistency`) lifted by `corrects`; one that does more is a step of its own (`steps`).
To add one, write it and give it a line here, or from outside: `METHODS["mine"] = Entry(...)`.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple

from . import consistency
from .consistency import Consistency
from .sampler import Method, split_correct_recombine


class Entry(NamedTuple):
    """How a method is made, where it comes from, and what it promises.

    `make` takes, by name, those of `gamma`, `gamma_schedule`, `noise`, `inner`, `r2` and
    `pixels` that the method has a use for; each must have a default, save `pixels`.
    """

    make: Callable[..., Method]
    source: str
    plain_when_empty: bool
    """Where nothing is observed, it is the plain sampler, bit for bit."""
    exact_when_full: bool
    """A measurement of everything, without error, is what comes out."""


def corrects(make: Callable[..., Consistency]) -> Callable[..., Method]:
    """The method that corrects every prediction by the rule that `make` makes."""

    @wraps(make)
    def method(**options) -> Method:
        return split_correct_recombine(make(**options))

    return method


METHODS: dict[str, Entry] = {
    "none": Entry(corrects(lambda: consistency.none), "the plain generator", True, False),
    "dds": Entry(corrects(consistency.dds), "arXiv 2303.05754", True, False),
    "bayes_dds": Entry(corrects(consistency.bayes_dds), "ours", True, True),
}


def options(name: str) -> set[str]:
    """What the method of this name has a use for."""
    return set(signature(METHODS[name].make).parameters)


def method(name: str, **given: Any) -> Method:
    """The method of this name, made with those of the given options that it takes."""
    taken = options(name)
    return METHODS[name].make(**{key: value for key, value in given.items() if key in taken})
