"""Schedules and solvers: golden values, torch's schedulers, known flows, and edges of σ."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ic_jax.latent_mask import LatentMask
from ic_jax.sampling.consistency import bayes_dds, dds, none
from ic_jax.sampling.denoiser import Prediction, split
from ic_jax.sampling.methods import method
from ic_jax.sampling.sampler import State, advance, split_correct_recombine
from ic_jax.sampling.schedule import (
    Level,
    double_shift_schedule,
    dpmpp_schedule,
    flow_schedule,
    parts,
    shifted,
    unipc_schedule,
)
from ic_jax.sampling.solvers import SOLVERS, dpmpp_2m, euler, unipc

SHAPE = (2, 3, 4, 5)
KEY = jax.random.key(0)
SCHEDULES = [flow_schedule, unipc_schedule, dpmpp_schedule, double_shift_schedule]
MULTISTEP = [dpmpp_2m, unipc]


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def toy(x, level):
    """A velocity without meaning, curved in x and σ."""
    return split(x, jnp.sin(3 * x) + 0.5 * x * level.sigma + 0.1, level.sigma)


def begin(solver, x):
    return State(x, solver.init(x), KEY)


def mask(a, v):
    return LatentMask(jnp.full(SHAPE, a), jnp.full(SHAPE, v))


def stepper(solver, denoise=toy, rule=none, y=jnp.zeros(SHAPE), mask=mask(0.0, 0.0)):
    return split_correct_recombine(rule)(denoise, solver, y, mask)


def solve(solver, levels, x, *how):
    return advance(stepper(solver, *how), begin(solver, x), levels)


def part(levels, first, last):
    return jax.tree.map(lambda leaf: leaf[first:last], levels)


# Schedules ----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps, shift", [(1, 3.0), (2, 1.0), (10, 1.0), (50, 8.0), (1000, 16.0)])
def test_levels_fall_from_noise_to_clean_without_gaps(schedule, steps, shift):
    levels = schedule(steps, shift)
    for leaf in levels:
        assert isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 and leaf.shape == (steps,)
    assert 0.999 <= levels.sigma[0] <= 1 and levels.next_sigma[-1] == 0
    np.testing.assert_array_equal(levels.sigma[1:], levels.next_sigma[:-1])
    assert (levels.sigma > levels.next_sigma).all()


@pytest.mark.parametrize("schedule, whole", list(zip(SCHEDULES, [False, True, True, False])))
def test_timesteps_are_truncated_where_the_checkpoint_was_sampled_so(schedule, whole):
    levels = schedule(50, 5.0)
    exact = 1000 * levels.sigma.astype(np.float64)
    expected = np.floor(exact + 1e-4) if whole else exact
    np.testing.assert_allclose(levels.timestep, expected, rtol=1e-6)


def test_shift_moves_steps_towards_noise():
    sigma = np.linspace(0, 1, 11)
    np.testing.assert_allclose(shifted(sigma, 1.0), sigma)
    assert shifted(0.5, 3.0) == 0.75
    np.testing.assert_allclose(shifted(shifted(sigma, 2.0), 3.0), shifted(sigma, 6.0))


@pytest.mark.parametrize("schedule, sigmas", [
    (unipc_schedule, [0.99966645, 0.92272168, 0.81780970, 0.66629612, 0.42826521]),
    (dpmpp_schedule, [1, 0.92307693, 0.81818181, 0.66666669, 0.42857143]),
    (double_shift_schedule, [1, 0.90035909, 0.75112110, 0.50298506, 0.00892857]),
])  # fmt: skip
def test_five_levels_are_those_of_the_reference(schedule, sigmas):
    np.testing.assert_allclose(schedule(5, 3.0).sigma, np.float32(sigmas), atol=6e-8)


def test_the_double_shift_ends_as_the_reference_does():
    ends = double_shift_schedule(50, 5.0).sigma[-3:]
    np.testing.assert_allclose(ends, [0.19280361, 0.11481947, 0.02441407], atol=1e-8)


UNIPC_TIMESTEPS = {
    3.0: "999 992 985 978 971 963 956 948 939 931 922 913 904 894 884 874 864 853 841 829 817 805 "
    "792 778 764 749 734 718 701 684 666 647 627 606 585 562 538 512 486 458 428 396 363 327 290 "
    "249 206 160 111 57",
    5.0: "999 995 991 987 982 978 973 968 963 957 952 946 940 934 927 920 913 906 898 890 882 873 "
    "863 854 843 833 821 809 796 783 768 753 737 720 701 681 660 636 611 584 555 522 487 448 405 "
    "356 302 241 172 92",
}


@pytest.mark.parametrize("shift", list(UNIPC_TIMESTEPS))
def test_fifty_timesteps_are_those_that_wan_was_sampled_with(shift):
    expected = [int(t) for t in UNIPC_TIMESTEPS[shift].split()]
    assert unipc_schedule(50, shift).timestep.tolist() == expected


def test_dpmpp_timesteps_are_those_of_the_reference():
    assert dpmpp_schedule(5, 3.0).timestep.tolist() == [1000, 923, 818, 666, 428]


@pytest.mark.parametrize("steps, shift", [(5, 3.0), (30, 5.0)])
def test_the_double_shift_is_the_schedule_of_diffusers(steps, shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    ours = double_shift_schedule(steps, shift)
    np.testing.assert_allclose(np.append(ours.sigma, 0), theirs.sigmas, atol=1e-6)
    np.testing.assert_allclose(ours.timestep, theirs.timesteps, atol=1e-3)


def cut_at(levels, boundary):
    return parts(levels, lambda level: bool(level.timestep >= 1000 * boundary))


@pytest.mark.parametrize("shift, boundary, high", [(12.0, 0.875, 26), (5.0, 0.9, 15)])
def test_experts_share_forty_steps_as_in_the_reference(shift, boundary, high):
    levels = unipc_schedule(40, shift)
    (_, above), (_, below) = cut_at(levels, boundary)
    assert len(above.sigma) == high and len(below.sigma) == 40 - high
    assert above.timestep.min() >= 1000 * boundary > below.timestep.max()
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), above, below)
    jax.tree.map(np.testing.assert_array_equal, joined, levels)


@pytest.mark.parametrize("boundary, counts", [
    (0.0, {True: 5}), (1.0, {True: 1, False: 4}), (1.1, {False: 5}),
])  # fmt: skip
def test_either_expert_may_have_no_step_at_all(boundary, counts):
    solver, x = euler(), normal(0)
    cut = cut_at(flow_schedule(5, 3.0), boundary)
    assert {label: len(levels.sigma) for label, levels in cut} == counts
    state = begin(solver, x)
    for _, levels in cut:
        state = advance(stepper(solver), state, levels)
    np.testing.assert_allclose(state.x, solve(solver, flow_schedule(5, 3.0), x).x, atol=1e-6)


def test_a_schedule_can_be_cut_inside_jit():
    cut = jax.jit(lambda: cut_at(unipc_schedule(40, 12.0), 0.875)[0][1].sigma)
    assert cut().shape == (26,)


# One step -----------------------------------------------------------------------------

SIGMA = jnp.float32(0.4)
LEVEL = Level(SIGMA, jnp.float32(0.3), 1000 * SIGMA)


@pytest.mark.parametrize("solver", [euler(), dpmpp_2m(), unipc()])
def test_the_first_step_is_along_the_velocity(solver):
    x, velocity = normal(0), normal(1)
    out, _ = solver.update(solver.init(x), split(x, velocity, SIGMA), LEVEL, KEY)
    np.testing.assert_allclose(out, x + (0.3 - SIGMA) * velocity, atol=1e-6)


@pytest.mark.parametrize("make", [euler, dpmpp_2m, unipc])
def test_renoise_draws_from_its_key_and_without_it_nothing_is_drawn(make):
    x, p = normal(0), split(normal(0), normal(1), SIGMA)
    step = lambda share, seed: make(share).update(
        make(share).init(x), p, LEVEL, jax.random.key(seed)
    )[0]
    np.testing.assert_array_equal(step(0.0, 1), step(0.0, 2))
    np.testing.assert_array_equal(step(0.5, 1), step(0.5, 1))
    assert jnp.abs(step(0.5, 1) - step(0.5, 2)).max() > 0.05


@pytest.mark.parametrize("make", MULTISTEP)
def test_a_constant_clean_estimate_is_approached_as_by_euler(make):
    """Whatever is remembered of it: the flow of a constant estimate is exact at any order."""
    clean, x, levels = normal(0), normal(1), flow_schedule(6, 3.0)
    denoise = lambda x, level: Prediction(clean, (x - (1 - level.sigma) * clean) / level.sigma)
    out = solve(make(), part(levels, 0, 5), x, denoise).x
    end = levels.sigma[5]
    np.testing.assert_allclose(out, (1 - end) * clean + end * x, atol=2e-6)


# Against values made once by Wan's and VideoX-Fun's own samplers ------------------------

GOLDEN = {
    ("unipc", 5, 3.0): [-0.09529025, 0.00043478, -0.05406471, -0.03677742],
    ("unipc", 6, 5.0): [-0.14385931, 0.03052012, -0.07477999, -0.04166620],
    ("dpmpp_2m", 5, 3.0): [-0.08874938, -0.00157671, -0.05273911, -0.03641543],
    ("dpmpp_2m", 6, 5.0): [-0.13772051, 0.02819427, -0.07289724, -0.04120578],
    ("flow_euler", 5, 3.0): [-0.08044868, -0.00388180, -0.04296286, -0.03399025],
    ("flow_euler", 6, 5.0): [-0.08272193, 0.02493682, -0.06036132, -0.03779439],
}


@pytest.mark.parametrize("name, steps, shift", GOLDEN)
def test_golden_values(name, steps, shift):
    x = jnp.array([1, -0.5, 0.3, 0.05], jnp.float32).reshape(1, 1, 1, 4)
    recipe = SOLVERS[name]
    out = solve(recipe.solver(0.0), recipe.schedule(steps, shift), x).x
    np.testing.assert_allclose(out.ravel(), GOLDEN[name, steps, shift], atol=5e-7)


# Against the installed diffusers --------------------------------------------------------

FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)
ORACLES = {
    "flow_euler": FlowMatchEulerDiscreteScheduler,
    "unipc": partial(UniPCMultistepScheduler, solver_order=2, solver_type="bh2", **FLOW),
    "dpmpp_2m": partial(DPMSolverMultistepScheduler, solver_order=2, **FLOW),
}


def of_diffusers(scheduler, levels, x):
    """The update rule alone: its own levels change from version to version, so it gets ours."""
    scheduler.set_timesteps(len(levels.sigma))
    scheduler.sigmas = torch.tensor(np.append(levels.sigma, 0), dtype=torch.float64)
    scheduler.set_begin_index(0)
    x = torch.tensor(np.asarray(x), dtype=torch.float64)
    for sigma, timestep in zip(levels.sigma, scheduler.timesteps):
        velocity = torch.sin(3 * x) + 0.5 * x * float(sigma) + 0.1
        x = scheduler.step(velocity, timestep, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("steps, shift", [(1, 3.0), (2, 3.0), (3, 5.0), (10, 5.0)])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_steps_are_those_of_diffusers(name, steps, shift):
    # Not from σ = 1, where diffusers' UniPC has no value.
    levels = unipc_schedule(steps, shift)
    x = normal(0)
    theirs = of_diffusers(ORACLES[name](), levels, x)
    np.testing.assert_allclose(solve(SOLVERS[name].solver(0.0), levels, x).x, theirs, atol=1e-5)


# A Gaussian, whose flow is known: clean ~ N(MEAN, SPREAD²) ------------------------------

MEAN, SPREAD = 0.5, 0.8


def gaussian(x, level):
    """E(clean | x) and the noise that goes with it."""
    signal = 1 - level.sigma
    gain = signal * SPREAD**2 / ((signal * SPREAD) ** 2 + level.sigma**2)
    clean = MEAN + gain * (x - signal * MEAN)
    return Prediction(clean, (x - signal * clean) / level.sigma)


def flow(z, sigma):
    """Where the flow from z at σ = 1 passes σ."""
    return (1 - sigma) * MEAN + np.hypot((1 - sigma) * SPREAD, sigma) * z


def error(solver, steps):
    z = np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 1, 1, 8)
    sigmas = np.linspace(0.9, 0.1, steps + 1, dtype=np.float32)
    levels = Level(sigmas[:-1], sigmas[1:], 1000 * sigmas[:-1])
    out = solve(solver, levels, jnp.asarray(flow(z, sigmas[0])), gaussian).x
    return np.abs(out - flow(z, sigmas[-1])).max()


@pytest.mark.parametrize("solver, order", [(euler(), 1), (dpmpp_2m(), 2), (unipc(), 3)])
def test_order_of_convergence(solver, order):
    """Halving the step divides the error by 2^order."""
    measured = np.log2(error(solver, 32) / error(solver, 64))
    assert abs(measured - order) < 0.15


@pytest.mark.parametrize("name", SOLVERS)
def test_fifty_steps_come_close_and_a_higher_order_closer(name):
    z = np.linspace(-2, 2, 8, dtype=np.float32).reshape(1, 1, 1, 8)
    recipe = SOLVERS[name]
    levels = recipe.schedule(50, 3.0)
    out = solve(recipe.solver(0.0), levels, jnp.asarray(flow(z, levels.sigma[0])), gaussian).x
    bound = 0.1 if "euler" in name else 0.02
    assert np.abs(out - flow(z, 0.0)).max() < bound


@pytest.mark.parametrize("make", MULTISTEP)
def test_renewed_noise_keeps_the_variance_of_the_prior(make):
    x = solve(make(0.2), flow_schedule(100, 1.0), normal(7, (1, 64, 64, 4)), gaussian).x
    np.testing.assert_allclose([x.mean(), x.var()], [MEAN, SPREAD**2], atol=0.03)


# With a measurement ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("rule", [bayes_dds(), bayes_dds(noise="keep"), dds(1e8)])
def test_a_full_exact_measurement_is_returned(name, rule):
    recipe, y = SOLVERS[name], normal(4)
    levels = recipe.schedule(6, 3.0)
    out = solve(recipe.solver(0.0), levels, normal(0), toy, rule, y, mask(1.0, 0.0))
    np.testing.assert_allclose(out.x, y, atol=1e-6)


@pytest.mark.parametrize("make", MULTISTEP)
def test_the_corrected_flow_is_the_one_that_is_solved(make):
    """A rule inside the denoiser, or after it: the solver cannot tell."""
    rule, y, m, levels = bayes_dds(), normal(4), mask(0.8, 0.3), unipc_schedule(8, 3.0)
    inside = lambda x, level: rule(toy(x, level), y, m, level, KEY)
    after = solve(make(), levels, normal(0), toy, rule, y, m).x
    np.testing.assert_allclose(after, solve(make(), levels, normal(0), inside).x, atol=1e-6)
    assert jnp.abs(after - solve(make(), levels, normal(0)).x).max() > 0.1


@pytest.mark.parametrize("make", MULTISTEP)
def test_noise_that_a_rule_changed_is_what_the_next_level_gets(make):
    """The memory must not bring back the x of before the rule."""
    solver, x = make(), normal(0)
    levels = unipc_schedule(6, 3.0)
    state = solve(solver, part(levels, 0, 3), x)
    level = jax.tree.map(lambda leaf: jnp.asarray(leaf[3]), levels)
    at = lambda p: solver.update(state.memory, p, level, KEY)[0]
    p, extra = toy(state.x, level), normal(5)
    moved = at(Prediction(p.clean, p.noise + extra)) - at(p)
    np.testing.assert_allclose(moved, level.next_sigma * extra, atol=2e-6)


# Edges, and transforms ------------------------------------------------------------------


@pytest.mark.parametrize("solver", [euler(), dpmpp_2m(), unipc()])
@pytest.mark.parametrize("schedule", [flow_schedule, unipc_schedule])
@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_is_infinite_on_the_way(solver, schedule, steps):
    """Step by step outside jit, so that values which a `where` would discard are seen too."""
    run = lambda: solve(
        solver, schedule(steps, 12.0), normal(0), toy, bayes_dds(), normal(4), mask(0.7, 0.2)
    )
    with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
        eager = run().x
    np.testing.assert_allclose(eager, run().x, atol=2e-6)


@pytest.mark.parametrize("solver", [euler(), dpmpp_2m(), unipc(), unipc(0.3)])
def test_segments_make_the_whole_bit_for_bit(solver):
    levels = unipc_schedule(7, 3.0)
    go = jax.jit(partial(advance, stepper(solver, toy, bayes_dds(), normal(4), mask(0.7, 0.2))))
    first = begin(solver, normal(0))
    whole = go(first, levels)
    # A segment of one step is no loop, and XLA may round it otherwise.
    for cuts in [(0, 2, 4, 7), (0, 3, 5, 7)]:
        state = first
        for a, b in zip(cuts, cuts[1:]):
            state = go(state, part(levels, a, b))
        jax.tree.map(np.testing.assert_array_equal, (state.x, state.memory), whole[:2])


@pytest.mark.parametrize("solver", [dpmpp_2m(), unipc()])
def test_vmap_is_a_loop_over_clips(solver):
    step = stepper(solver, toy, bayes_dds(), normal(4), mask(0.7, 0.2))
    run = jax.jit(lambda x: advance(step, begin(solver, x), unipc_schedule(5, 3.0)).x)
    clips = normal(6, (3, *SHAPE))
    np.testing.assert_allclose(jax.vmap(run)(clips), jnp.stack([run(x) for x in clips]), atol=1e-6)


# Draws --------------------------------------------------------------------------------

DRAWING = ["diffpir", "flowdps", "flower", "flower_cov", "pnp_flow", "bayes_draw"]
DRAWING += ["langevin", "gibbs"]


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("name", [*DRAWING, "bayes_dds, renew", "dds, renew"])
def test_what_draws_takes_eulers_steps(name, solver):
    name, _, noise = name.partition(", ")
    given = {"inner": 1} | ({"noise": noise} if noise else {})
    run = lambda solver: advance(
        method(name, **given)(toy, solver, normal(1), mask(0.7, 0.3)),
        begin(solver, normal(0)),
        unipc_schedule(6, 3.0),
    )
    end, plain = run(solver()), run(euler())
    np.testing.assert_allclose(end.x, plain.x, atol=2e-5)
    # What comes after it finds no trace of a draw.
    jax.tree.map(np.testing.assert_array_equal, end.memory, solver().init(end.x))


@pytest.mark.parametrize("recipe", SOLVERS)
@pytest.mark.parametrize("seen", [0.0, 1.0])
def test_a_draw_has_the_posteriors_variance_with_every_solver(recipe, seen):
    """An exact denoiser of N(0, 0.8²), measured with variance 0.2."""
    prior, error, shape = 0.8**2, 0.2, (1, 1, 1, 20_000)
    variance = lambda s: prior * s**2 / (prior * (1 - s) ** 2 + s**2)

    def denoise(x, level):
        s = level.sigma
        clean = (1 - s) * prior / (prior * (1 - s) ** 2 + s**2) * x
        return Prediction(clean, (x - (1 - s) * clean) / s)

    known = LatentMask(jnp.full(shape, seen), jnp.full(shape, error))
    solver, levels = SOLVERS[recipe].solver(0.0), SOLVERS[recipe].schedule(50, 8.0)
    step = method("bayes_draw", r2=variance)(denoise, solver, jnp.ones(shape), known)
    x = advance(step, begin(solver, normal(0, shape)), levels).x
    expected = 1 / (1 / prior + seen / error)
    np.testing.assert_allclose(x.var(), expected, rtol=0.06)
    np.testing.assert_allclose(x.mean(), seen * expected / error, atol=0.03)
