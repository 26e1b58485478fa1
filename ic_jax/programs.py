"""The programs that a window runs: jitted once, for the run and for compiling ahead of it."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.stages import Lowered

from . import expert, pipeline
from .course import Part, schedule, stages
from .edit import Edit
from .geometry.camera import Camera
from .model import Model
from .models.layout import Layout
from .models.variants import Variant
from .pipeline import Observation, Scene
from .sampling.sampler import State
from .sampling.schedule import Level
from .settings import Settings
from .shot import Shot

observe = jax.jit(pipeline.observe, static_argnames=("sizes", "settings", "layout"))
finish = jax.jit(pipeline.finish_bytes, static_argnames=("sizes", "layout"))

prepare = jax.jit(expert.prepare, static_argnames=("sizes", "settings", "name", "layout"))
_STATIC = "sizes", "settings", "part", "layout"
refresh = jax.jit(pipeline.refresh, static_argnames=_STATIC)
proceed = jax.jit(pipeline.proceed, static_argnames=_STATIC, donate_argnames="state")


def lowered(
    model: Model,
    settings: Settings,
    footage: type[Shot] | type[Edit],
    layout: Layout = Layout(),
) -> Iterator[tuple[str, Lowered]]:
    """Every program of a window, by name, ready to be compiled; the weights may be abstract.

    `settings` are resolved (`director.resolve`). JAX's persistent cache recognises the compiled
    programs when a run asks for the same ones.
    """
    sizes, weights = model.variant, model.weights
    scene, key = abstract_scene(sizes, footage), jax.random.key(0)
    text = 2, sizes.dit.text_len, sizes.dit.text_dim
    context = jax.ShapeDtypeStruct(text, jnp.dtype(sizes.dtype))
    yield "observe", observe.lower(sizes, settings, weights, scene, scene, key, layout)
    seen, state = abstract_window(model, settings, footage)
    name = None
    for part, level in dict(steps(sizes, settings)).items():
        if part.expert != name:
            name = part.expert
            whose = sizes, settings, name, weights, context, seen.conditioning, layout
            yield f"prepare, {name}", prepare.lower(*whose)
            told = prepare.eval_shape(*whose)
        known = sizes, settings, part, weights, told, seen, state, level, layout
        if part.refreshes:
            yield f"refresh, {name}", refresh.lower(*known)
        yield f"sample, {name}", proceed.lower(*known)
    yield "finish", finish.lower(sizes, weights, state, layout)


def steps(sizes: Variant, settings: Settings) -> list[tuple[Part, Level]]:
    """The schedule, level by level, so that the host hears of every step."""
    return [
        (part, jax.tree.map(lambda leaf: leaf[i : i + 1], some))
        for part, some in stages(sizes, settings, schedule(sizes, settings))
        for i in range(len(some.sigma))
    ]


def abstract_window(
    model: Model, settings: Settings, footage: type[Shot] | type[Edit]
) -> tuple[Observation, State]:
    """Shapes of what a window is sampled with: what is observed of it, and the sampler's state."""
    sizes, key = model.variant, jax.random.key(0)
    scene = abstract_scene(sizes, footage)
    seen = jax.eval_shape(
        lambda *given: pipeline.observe(sizes, settings, *given), model.weights, scene, scene, key
    )
    return seen, jax.eval_shape(lambda key: pipeline.begin(sizes, settings, key)[0], key)


def abstract_scene(sizes: Variant, footage: type[Shot] | type[Edit]) -> Scene:
    """Shapes of a window of a shot, or of an edit, at the model's own size."""
    shape = sizes.frames, sizes.height, sizes.width
    array = jax.ShapeDtypeStruct
    frames, keep = array((*shape, 3), jnp.uint8), array(shape, jnp.bool_)
    if footage is Edit:
        window = Edit(frames, keep)
    else:
        poses, lenses = (array((sizes.frames, n, n), jnp.float32) for n in (4, 3))
        camera = Camera(poses, lenses)
        window = Shot(frames, array(shape, jnp.float32), camera, camera, keep)
    operator = jax.eval_shape(lambda window: window.operator(), window)
    return Scene(array((*shape, 3), jnp.float32), operator)
