"""Every method on a problem whose posterior is known: clean and error both Gaussian.

    python -m experiments.gaussian

writes experiments/results/gaussian.md, .json and .png. The denoiser is E(clean | x) itself, so
whatever a method misses is its own doing and not the model's. Four problems: a prior whose
positions are independent, or correlated as a product of two first-order autoregressions with
ρ = 0.9 between neighbours; and all positions measured, or the left half of them.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from experiments.gaussian_report import Facts, Record, publish
from ic_jax.latent_mask import LatentMask
from ic_jax.sampling.denoiser import Denoiser, split
from ic_jax.sampling.methods import METHODS, method, options
from ic_jax.sampling.sampler import Pixels, advance, start
from ic_jax.sampling.schedule import Level, flow_schedule
from ic_jax.sampling.solvers import euler

SHAPE = (1, 4, 4, 1)
SIZE = int(np.prod(SHAPE))
CORRELATION = 0.9
SMALL_STEPS, PRACTICAL_STEPS = 400, 24
MEASUREMENTS = 2
INNER = (1, 2, 4, 8)
STEPS = (12, 24, 48, 96, 192)
# Compiles in a quarter of the time, and runs as fast.
QUICK = {"xla_backend_optimization_level": 1}


# The problem and its posterior --------------------------------------------------------


class Gaussian(NamedTuple):
    """A normal distribution, in float64 on the host."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]


class Problem(NamedTuple):
    """clean ~ prior, and y = clean + error wherever a position is observed."""

    prior: Gaussian
    observed: Float[np.ndarray, " d"]
    """1 or 0: the coverage a."""
    error: Float[np.ndarray, " d"]
    """The measurement's variance v."""


def product_problem(correlation: float, share: float) -> Problem:
    """Standard deviations of 0.5 to 1.4 and errors of 0.14 to 1, in different orders.

    `correlation` is that of neighbours in a row or column; `share` of each row is measured.
    """
    _, height, width, _ = SHAPE
    powers = correlation ** np.abs(np.subtract.outer(np.arange(width), np.arange(width)))
    deviation = np.sqrt(np.geomspace(0.25, 2.0, SIZE)[5 * np.arange(SIZE) % SIZE])
    covariance = np.kron(powers[:height, :height], powers) * np.outer(deviation, deviation)
    observed = np.tile(np.arange(width) < share * width, height).astype(float)
    prior = Gaussian(np.linspace(-0.5, 0.5, SIZE), covariance)
    return Problem(prior, observed, np.geomspace(0.02, 1.0, SIZE))


PROBLEMS = {
    "diagonal, full": product_problem(0.0, 1.0),
    "diagonal, partial": product_problem(0.0, 0.5),
    "correlated, full": product_problem(CORRELATION, 1.0),
    "correlated, partial": product_problem(CORRELATION, 0.5),
}


def posterior(problem: Problem, y: Float[np.ndarray, " d"]) -> Gaussian:
    """The distribution of clean once y is known; y counts only where it is observed."""
    prior, seen = problem.prior, problem.observed > 0
    across = prior.covariance[:, seen]
    gain = np.linalg.solve(across[seen] + np.diag(problem.error[seen]), across.T).T
    mean = prior.mean + gain @ (y - prior.mean)[seen]
    return Gaussian(mean, prior.covariance - gain @ across.T)


def measure(problem: Problem, rng: np.random.Generator) -> Float[np.ndarray, " d"]:
    """One draw of y; 0, and so nobody's mean, where nothing is observed."""
    clean = rng.multivariate_normal(*problem.prior)
    error = np.sqrt(problem.error) * rng.normal(size=clean.shape)
    return problem.observed * (clean + error)


# The exact denoiser ---------------------------------------------------------------------


class Prior(NamedTuple):
    """The prior along its principal axes: all that its denoiser asks for at any σ."""

    mean: Float[Array, " d"]
    axes: Float[Array, "d d"]
    variance: Float[Array, " d"]


def principal(gaussian: Gaussian) -> Prior:
    """The same distribution, diagonalised."""
    variance, axes = np.linalg.eigh(gaussian.covariance)
    return Prior(*(jnp.asarray(leaf, jnp.float32) for leaf in (gaussian.mean, axes, variance)))


def exact_denoiser(prior: Prior) -> Denoiser:
    """E(clean | x), and the noise that makes up x with it.

    It goes through the velocity, which unlike the noise divides by no σ.
    """

    def denoise(x, level):
        sigma, signal = level.sigma, 1 - level.sigma
        scale = (sigma - signal * prior.variance) / (signal**2 * prior.variance + sigma**2)
        centred = x.reshape(-1) - signal * prior.mean
        velocity = prior.axes @ (scale * (prior.axes.T @ centred)) - prior.mean
        return split(x, velocity.reshape(x.shape), sigma)

    return denoise


def clean_variance(prior: Prior) -> Callable[[Float[Array, ""]], Float[Array, "t h w c"]]:
    """The diagonal of Var(clean | x) at σ: r_σ² as a perfect calibration would measure it."""

    def r2(sigma):
        signal = 1 - sigma
        along = prior.variance * sigma**2 / (signal**2 * prior.variance + sigma**2)
        return (prior.axes**2 @ along).reshape(SHAPE)

    return r2


# Distances ------------------------------------------------------------------------------


class Distance(NamedTuple):
    """How far samples are from the posterior; all 0 for infinitely many exact ones."""

    mean: float
    """Root mean square over positions of the mean's error, in posterior standard deviations."""
    covariance: float
    """Frobenius norm of the covariance's error over that of the covariance."""
    w2: float
    """Squared 2-Wasserstein distance over the posterior's trace: 1 is all samples at its mean."""


def distance(found: Gaussian, true: Gaussian) -> Distance:
    """Between two Gaussians; the Wasserstein distance is that of Gelbrich (1990).

    Infinite if the samples were.
    """
    if not np.isfinite(found.covariance).all():
        return Distance(np.inf, np.inf, np.inf)
    off = found.mean - true.mean
    root = _root(true.covariance)
    cross = _root(root @ found.covariance @ root)
    trace = np.trace(true.covariance)
    transport = off @ off + np.trace(found.covariance) + trace - 2 * np.trace(cross)
    norm = np.linalg.norm
    return Distance(
        float(np.sqrt(np.mean(off**2 / np.diag(true.covariance)))),
        float(norm(found.covariance - true.covariance) / norm(true.covariance)),
        # Rounding alone could make it negative.
        float(max(transport, 0.0) / trace),
    )


def _root(matrix: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    values, axes = np.linalg.eigh(matrix)
    return (axes * np.sqrt(np.maximum(values, 0))) @ axes.T


def moments(samples: Float[np.ndarray, "n d"]) -> Gaussian:
    """The Gaussian of the samples' own mean and covariance."""
    samples = np.asarray(samples, np.float64)
    return Gaussian(samples.mean(0), np.cov(samples, rowvar=False))


# Sampling -------------------------------------------------------------------------------


class Run(NamedTuple):
    """A method with its options, and the number of steps that it takes."""

    name: str
    options: dict[str, Any]
    steps: int
    label: str


class Case(NamedTuple):
    """A problem as the sampler sees it, before y."""

    prior: Prior
    mask: LatentMask


def as_case(problem: Problem) -> Case:
    """The problem's arrays, on the device."""
    leaves = (jnp.asarray(x, jnp.float32).reshape(SHAPE) for x in problem[1:])
    return Case(principal(problem.prior), LatentMask(*leaves))


def decode(latent: Float[Array, "t h w 1"]) -> Float[Array, "t h w 3"]:
    """An isometry: the latent in equal parts in three colours."""
    return jnp.repeat(latent, 3, axis=-1) / jnp.sqrt(3.0)


def encode(clip: Float[Array, "t h w 3"]) -> Float[Array, "t h w 1"]:
    """Both the inverse of `decode` and its transpose."""
    return clip.sum(-1, keepdims=True) / jnp.sqrt(3.0)


def sample(
    run: Run, case: Case, y: Float[Array, "t h w c"], key: Array, denoise: Denoiser | None = None
) -> Float[Array, "t h w c"]:
    """One sample by Euler's steps of equal length; `denoise` stands in for the exact one."""
    pixels = Pixels(encode, decode, decode(y), case.mask.coverage[..., 0])
    given = {"r2": clean_variance(case.prior), "pixels": pixels} | run.options
    solver, denoise = euler(), denoise or exact_denoiser(case.prior)
    step = method(run.name, **given)(denoise, solver, y, case.mask)
    return advance(step, start(key, SHAPE, solver), flow_schedule(run.steps, 1.0)).x


def calls_per_step(run: Run) -> float:
    """How often the denoiser is called for one sample, loops counted as often as they run."""
    one = as_case(PROBLEMS["correlated, partial"])
    count = 0

    def counting(x: Float[Array, "t h w c"], level: Level):
        nonlocal count
        count += 1
        return exact_denoiser(one.prior)(x, level)

    short = run._replace(steps=PRACTICAL_STEPS)
    with jax.disable_jit():
        sample(short, one, jnp.zeros(SHAPE), jax.random.key(0), counting)
    return count / short.steps


def distances(run: Run, samples: int) -> dict[str, Distance]:
    """Per problem, the mean over measurements of the distance from the posterior."""
    names = list(PROBLEMS)
    cases = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(as_case(PROBLEMS[n]) for n in names))
    ys = {name: measurements(name) for name in names}
    keys = jax.random.split(jax.random.key(0), (len(names), MEASUREMENTS, samples))
    many = partial(sample, run)
    for axes in ((None, None, 0), (None, 0, 0), (0, 0, 0)):
        many = jax.vmap(many, axes)
    y = jnp.asarray(np.stack([*ys.values()]), jnp.float32).reshape(*keys.shape[:2], *SHAPE)
    ends = np.asarray(jax.jit(many, compiler_options=QUICK)(cases, y, keys))
    ends = ends.reshape(*keys.shape, SIZE)
    return {
        name: average(
            distance(moments(ends[i, j]), posterior(PROBLEMS[name], ys[name][j]))
            for j in range(MEASUREMENTS)
        )
        for i, name in enumerate(names)
    }


def measurements(name: str) -> Float[np.ndarray, "m d"]:
    """The draws of y that all methods are given."""
    rng = np.random.default_rng(list(PROBLEMS).index(name))
    return np.stack([measure(PROBLEMS[name], rng) for _ in range(MEASUREMENTS)])


def floor(name: str, samples: int) -> Distance:
    """The distance that as many exact samples show: chance alone."""
    rng = np.random.default_rng(0)
    true = posterior(PROBLEMS[name], measurements(name)[0])
    draw = lambda: moments(rng.multivariate_normal(*true, size=samples))
    return average(distance(draw(), true) for _ in range(20))


def average(several: Iterable[Distance]) -> Distance:
    """The mean of each distance."""
    return Distance(*(float(np.mean(values)) for values in zip(*several)))


# The study ------------------------------------------------------------------------------


def compared(steps: int) -> list[Run]:
    """Every method as it comes, and what the choice of the noise does to ours."""
    return [Run(name, {}, steps, name) for name in METHODS] + [
        Run("bayes_dds", {"noise": noise}, steps, f"bayes_dds, {noise}")
        for noise in ("keep", "renew")
    ]


def refined() -> list[Run]:
    """Two ways to spend calls of the denoiser: more steps, or more within each."""
    renew = {"noise": "renew"}
    outer = [Run("bayes_dds", {}, steps, "bayes_dds") for steps in STEPS]
    outer += [Run("bayes_dds", renew, steps, "bayes_dds, renew") for steps in STEPS]
    outer += [Run("bayes_draw", {}, steps, "bayes_draw") for steps in STEPS]
    return outer + [
        Run(name, {"inner": inner}, PRACTICAL_STEPS, name)
        for name in METHODS
        for inner in INNER
        if "inner" in options(name)
    ]


def record(run: Run, samples: int) -> Record:
    """What one run costs and how far it ends from the truth."""
    began = time.time()
    found = {name: d._asdict() for name, d in distances(run, samples).items()}
    inner = run.options.get("inner")
    print(f"{run.label}, {run.steps} steps, {time.time() - began:.0f} s", flush=True)
    return Record(run.label, run.steps, inner, calls_per_step(run), found)


@dataclass
class Arguments:
    """Compare all methods with the exact posterior of a Gaussian."""

    samples: int = 1024
    """Per problem, and per draw of its measurement."""
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    began = time.time()
    recorded = partial(record, samples=arguments.samples)
    table = [recorded(run) for n in (SMALL_STEPS, PRACTICAL_STEPS) for run in compared(n)]
    curve = [recorded(run) for run in refined()]
    chance = {name: floor(name, arguments.samples)._asdict() for name in PROBLEMS}
    facts = Facts(arguments.samples, MEASUREMENTS, SIZE, CORRELATION, time.time() - began)
    publish(arguments.results, facts, chance, table, curve)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
