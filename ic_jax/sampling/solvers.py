"""Recombine: predictions become the latent at the next level.

With x = (1-σ) clean + σ noise, the flow between two levels for a clean estimate that does
not change on the way is Euler's step,

    x' = clean + σ'/σ (x - clean)

The multistep solvers put a better estimate in its place: where a line through the estimates
made so far, drawn over λ = log((1-σ)/σ), arrives half-way through the step. These are the
data-prediction forms of DPM-Solver++ and UniPC; written so, λ enters only through lengths of
steps, and nothing is evaluated at its infinite ends, σ = 1 and σ = 0.

x is read off the prediction and never passed beside it, so a solver goes on from whatever a
consistency rule made of clean and noise, and the line runs through the corrected estimates:
the flow that is solved is the corrected one.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ic_jax.registry import Registry

from .denoiser import Prediction
from .schedule import (
    Level,
    double_shift_schedule,
    dpmpp_schedule,
    flow_schedule,
    unipc_schedule,
)

Latent = Float[Array, "t h w c"]
Scalar = Float[Array, ""]


class Solver(NamedTuple):
    """`init(x) -> memory` and `update(memory, prediction, level, key) -> (x, memory)`."""

    init: Callable[[Latent], PyTree]
    update: Callable[[PyTree, Prediction, Level, PRNGKeyArray], tuple[Latent, PyTree]]


def euler(renoise: float = 0.0) -> Solver:
    """x' = (1-σ') clean + σ' noise.

    `renoise` is the share η in [0, 1] of the noise that is drawn anew at each step,
    √(1-η²) noise + η fresh, as in DDIM (arXiv 2010.02502, eq. 16); 0 is deterministic. It is
    a share per step, so more steps renew more, and it keeps the variance only while it is small.
    """

    def update(memory: PyTree, prediction: Prediction, level: Level, key: PRNGKeyArray):
        clean, noise = _renewed(prediction, renoise, key)
        return (1 - level.next_sigma) * clean + level.next_sigma * noise, memory

    return Solver(init=lambda x: (), update=update)


class Estimate(NamedTuple):
    """A clean estimate, and the level it was made at; σ = 1 stands for none."""

    sigma: Scalar
    clean: Latent


def dpmpp_2m(renoise: float = 0.0) -> Solver:
    """DPM-Solver++(2M), midpoint rule: second order, one call of the model per step.

    Lu et al., "DPM-Solver++" (arXiv 2211.01095), algorithm 2. First order at the first and at
    the last step, and at the second too if the first began at σ = 1. `renoise` is as in
    `euler`; what it adds between two estimates is not part of their line, and costs an order.
    """

    def update(last: Estimate, prediction: Prediction, level: Level, key: PRNGKeyArray):
        prediction = _renewed(prediction, renoise, key)
        clean, sigma = prediction.clean, level.sigma
        change = _reach(last.sigma, level) * (clean - last.clean)
        x = _stepped(_noisy(prediction, sigma), clean + change / 2, level)
        return x, Estimate(sigma, clean)

    return Solver(init=_nothing, update=update)


class Forecast(NamedTuple):
    """A step as it was taken: from which estimate, and how that was expected to change.

    `reach` is the length of the step in λ over that of the step before: 0 at first order.
    """

    start: Estimate
    reach: Scalar
    change: Latent


def unipc(renoise: float = 0.0) -> Solver:
    """UniPC of order 2 (B₂(h) = e^h - 1, data prediction) with its corrector, as Wan uses it.

    Zhao et al., "UniPC" (arXiv 2302.04867), algorithms 1 and 2. The predictor is `dpmpp_2m`. The
    corrector goes back over the last step once the estimate at its end is known, and raises the
    order to three at no call of the model; that estimate itself is not made again.

    With a consistency rule, the estimate at the end is one that already agrees with the
    measurement: what the last step did not foresee of the edit is carried back into it. The
    corrector is added to the x of the prediction, so noise that a rule kept or renewed is
    not undone. A rule that starts or stops between two levels makes the flow jump there, and
    across the jump every solver is of first order. `renoise` is as in `dpmpp_2m`.
    """

    def update(last: Forecast, prediction: Prediction, level: Level, key: PRNGKeyArray):
        prediction = _renewed(prediction, renoise, key)
        clean, sigma = prediction.clean, level.sigma
        x = _noisy(prediction, sigma) + _correction(last, clean, sigma)
        reach = _reach(last.start.sigma, level)
        change = reach * (clean - last.start.clean)
        x = _stepped(x, clean + change / 2, level)
        return x, Forecast(Estimate(sigma, clean), reach, change)

    return Solver(
        init=lambda x: Forecast(_nothing(x), jnp.zeros((), x.dtype), jnp.zeros_like(x)),
        update=update,
    )


def first_order(solver: Solver) -> Solver:
    """The same without memory: Euler's step, whatever the solver.

    For what draws at every level. A line through two estimates that were drawn apart leads away
    from the last one by their difference, which is noise on top of the posterior's own.
    """

    def update(memory: PyTree, prediction: Prediction, level: Level, key: PRNGKeyArray):
        x, _ = solver.update(solver.init(prediction.clean), prediction, level, key)
        return x, solver.init(x)

    return Solver(solver.init, update)


class Recipe(NamedTuple):
    """`schedule(steps, shift)` and `solver(renoise)`, as they are used together."""

    schedule: Callable[[int, float], Level]
    solver: Callable[[float], Solver]


SOLVERS = Registry[Recipe](
    euler=Recipe(flow_schedule, euler),
    flow_euler=Recipe(double_shift_schedule, euler),
    unipc=Recipe(unipc_schedule, unipc),
    dpmpp_2m=Recipe(dpmpp_schedule, dpmpp_2m),
)


def _renewed(prediction: Prediction, share: float, key: PRNGKeyArray) -> Prediction:
    clean, noise = prediction
    if share:
        fresh = jax.random.normal(key, noise.shape)
        noise = jnp.sqrt(1 - share**2) * noise + share * fresh
    return Prediction(clean, noise)


def _noisy(prediction: Prediction, sigma: Scalar) -> Latent:
    return (1 - sigma) * prediction.clean + sigma * prediction.noise


def _stepped(x: Latent, clean: Latent, level: Level) -> Latent:
    # Exactly `clean` at the end, where σ' = 0.
    return clean + level.next_sigma / level.sigma * (x - clean)


def _nothing(x: Latent) -> Estimate:
    return Estimate(jnp.ones((), x.dtype), jnp.zeros_like(x))


def _span(first: Scalar, second: Scalar) -> Scalar:
    """λ(second) - λ(first), for 1 > first > second > 0."""
    # λ itself, and 1 - σ near 1, would lose digits that the difference of two σ keeps.
    return jnp.log1p((first - second) / (second * (1 - first)))


def _reach(before: Scalar, level: Level) -> Scalar:
    """This step's length in λ over the last one's; 0 where either is infinite."""
    finite = (before < 1) & (level.next_sigma > 0)
    # Where it is not, any three levels do: a NaN must not arise even in a branch not taken.
    levels = (before, level.sigma, level.next_sigma)
    first, second, third = (jnp.where(finite, s, d) for s, d in zip(levels, (0.75, 0.5, 0.25)))
    return jnp.where(finite, _span(second, third) / _span(first, second), 0.0)


def _correction(last: Forecast, clean: Latent, sigma: Scalar) -> Latent:
    """What the last step should have added, had it known the estimate `clean` at its end.

    0 if there was none, or if it came from σ = 1. UniPC's 2×2 system for the weights of the
    two differences, solved by hand: `b1` weighs the change that came, `b2` its curvature.
    """
    known = last.start.sigma < 1
    start, end = jnp.where(known, last.start.sigma, 0.75), jnp.where(known, sigma, 0.5)
    h = _span(start, end)
    filled = -jnp.expm1(-h)
    lag = 1 - filled / h
    # At first order UniPC sets 1/2, the limit for short steps.
    b1 = jnp.where(last.reach > 0, lag / filled, 0.5)
    b2 = (1 - 2 * lag / h) / filled
    bend = (b2 - b1) * last.reach / (1 + last.reach)

    came = clean - last.start.clean
    missed = b1 * came + bend * (came - last.change) - last.change / 2
    return jnp.where(known, 1 - end / start, 0.0) * missed
