"""Every known way to keep a sample with its measurement, by name.

An entry makes a `Method`, which makes a `Step`. A method that only corrects predictions is a
rule (`consistency`) lifted by `corrects`; one that does more is a step of its own (`steps`).
To add one, write it and give it a line here, or from outside: `METHODS["mine"] = Entry(...)`.
"""

from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from typing import Any, NamedTuple

from ic_jax.registry import Registry

from . import consistency, gibbs, pixel_baselines, projections, renewals, steps, variational
from .consistency import Consistency
from .sampler import Method, split_correct_recombine
from .solvers import first_order


class Entry(NamedTuple):
    """How a method is made, where it comes from, and what it promises.

    `make` takes, by name, those of `gamma`, `gamma_schedule`, `noise`, `inner`, `r2` and
    `pixels` that the method has a use for; each must have a default, save `pixels`.
    """

    make: Callable[..., Method]
    source: str
    plain_when_empty: bool
    """Where nothing is observed, it is the plain sampler: bit for bit; compiled, to rounding."""
    exact_when_full: bool
    """A measurement of everything, without error, is what comes out."""
    trajectory: bool = True
    """Whether x is noisy at every level: if not, no other method can act at some of them."""
    single: bool = True
    """Whether a step asks the model once, at its own x, and takes no gradient: what `caching`
    can serve."""


def corrects(make: Callable[..., Consistency], anew: bool = False) -> Callable[..., Method]:
    """The method that corrects every prediction by the rule that `make` makes.

    `anew` is for rules that draw noise or latents anew at every level, as any does whose `noise`
    is "renew": a solver with memory then goes by `first_order`.
    """

    @wraps(make)
    def method(**options) -> Method:
        corrected = split_correct_recombine(make(**options))
        if not anew and options.get("noise") != "renew":
            return corrected
        return lambda denoise, solver, y, mask: corrected(denoise, first_order(solver), y, mask)

    return method


draws = partial(corrects, anew=True)

METHODS = Registry[Entry](
    none=Entry(corrects(lambda: consistency.none), "the plain generator", True, False),
    dds=Entry(corrects(consistency.dds), "arXiv 2303.05754", True, False),
    bayes_dds=Entry(corrects(consistency.bayes_dds), "ours", True, True),
    dds_attenuated=Entry(corrects(projections.dds_attenuated), "arXiv 2303.05754", True, False),
    replacement=Entry(corrects(lambda: renewals.replacement), "arXiv 2206.02779", True, True),
    ddnm=Entry(corrects(projections.ddnm), "arXiv 2212.00490", True, True),
    diffpir=Entry(draws(renewals.diffpir), "arXiv 2305.08995", False, True),
    flowdps=Entry(draws(renewals.flowdps), "arXiv 2503.08136", False, False),
    flowchef=Entry(corrects(projections.flowchef), "arXiv 2412.00100", True, True),
    pnp_flow=Entry(draws(renewals.pnp_flow), "arXiv 2410.02423", False, False),
    # Without options: the variances are Flower's own, and not calibrated.
    flower=Entry(draws(lambda: renewals.flower()), "arXiv 2509.26287", False, True),
    flower_cov=Entry(draws(renewals.flower_cov), "arXiv 2509.26287", False, True),
    bayes_draw=Entry(draws(renewals.bayes_draw), "ours, after arXiv 2509.26287", False, True),
    trimmed=Entry(corrects(projections.trimmed), "arXiv 2405.15364", True, False),
    repaint=Entry(steps.repaint, "arXiv 2201.09865", False, True, single=False),
    langevin=Entry(steps.langevin, "ours", False, True, single=False),
    ding=Entry(steps.ding, "arXiv 2512.18365", False, False, single=False),
    ding_delayed=Entry(partial(steps.ding, delayed=True), "arXiv 2512.18365", False, False),
    gibbs=Entry(gibbs.gibbs, "arXiv 2605.11871", False, True, single=False),
    red_diff=Entry(variational.red_diff, "arXiv 2305.04391", False, False, False, single=False),
    flair=Entry(variational.flair, "arXiv 2506.02680", False, True, False, single=False),
    pixel_dds=Entry(corrects(pixel_baselines.pixel_dds), "arXiv 2303.05754", False, False),
    dps=Entry(pixel_baselines.dps, "arXiv 2209.14687", False, False, single=False),
    psld=Entry(pixel_baselines.psld, "arXiv 2307.00619", False, False, single=False),
)


def options(name: str) -> set[str]:
    """What the method of this name has a use for."""
    return set(signature(METHODS[name].make).parameters)


def method(name: str, **given: Any) -> Method:
    """The method of this name, made with those of the given options that it takes."""
    taken = options(name)
    return METHODS[name].make(**{key: value for key, value in given.items() if key in taken})
