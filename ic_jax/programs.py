"""The programs that a window runs: jitted once, for the run and for compiling ahead of it."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jax.stages import Compiled
from jaxtyping import Array, UInt8

from . import expert, pipeline
from .course import Part, schedule, stages
from .edit import Edit
from .geometry.camera import Camera
from .model import Model, Weights
from .models.layout import Layout
from .models.variants import Variant
from .parallel import beside
from .pipeline import Observation, Scene
from .sampling.sampler import State
from .sampling.schedule import Level
from .settings import Settings
from .shot import Shot

observe = jax.jit(pipeline.observe, static_argnames=("sizes", "settings", "layout"))
_finish = jax.jit(pipeline.finish_bytes, static_argnames=("sizes", "layout"))

prepare = jax.jit(expert.prepare, static_argnames=("sizes", "settings", "name", "layout"))
_STATIC = "sizes", "settings", "part", "layout"
refresh = jax.jit(pipeline.refresh, static_argnames=_STATIC)
proceed = jax.jit(pipeline.proceed, static_argnames=_STATIC, donate_argnames="state")
_SAID = {refresh: "refresh", proceed: "sample"}


def finish(
    sizes: Variant, weights: Weights, state: State, layout: Layout = Layout()
) -> UInt8[Array, "t h w 3"]:
    """Decode, once the state's memory is off the devices: decoding needs the room."""
    for leaf in jax.tree.leaves(state.memory):
        leaf.delete()
    return _finish(sizes, weights, _bare(state), layout)


def _bare(state: State) -> State:
    return state._replace(memory=())


def compiled(
    model: Model,
    settings: Settings,
    footage: type[Shot] | type[Edit],
    layout: Layout = Layout(),
) -> Iterator[tuple[str, Compiled]]:
    """Every program of a window, by name, each compiled when it is asked for.

    `settings` are resolved (`choices.resolve`). The weights may be abstract, with shardings
    where they are to lie on a mesh. JAX's persistent cache recognises the programs when a run
    asks for the same ones.
    """
    sizes, weights = model.variant, model.weights
    scene, key = abstract_scene(sizes, footage), jax.random.key(0)
    yield "observe", observe.lower(sizes, settings, weights, scene, scene, key, layout).compile()
    seen, state = beside(weights, abstract_window(model, settings, footage))
    name = told = None
    for (program, part), level in _asked(sizes, settings).items():
        if part.expert != name:
            name, context = part.expert, abstract_context(sizes)
            whose = sizes, settings, name, weights, context, seen.conditioning, layout
            preparing = prepare.lower(*whose).compile()
            yield f"prepare, {name}", preparing
            told = prepare.eval_shape(*whose)
            if layout != Layout():
                # The steps take it from where XLA leaves it.
                told = jax.tree.map(_lying, told, preparing.output_shardings)
        known = sizes, settings, part, weights, told, seen, state, level, layout
        yield f"{_SAID[program]}, {name}", program.lower(*known).compile()
    yield "finish", _finish.lower(sizes, weights, _bare(state), layout).compile()


def _lying(leaf: jax.ShapeDtypeStruct, where: Sharding) -> jax.ShapeDtypeStruct:
    return leaf.update(sharding=where)


def _asked(sizes: Variant, settings: Settings) -> dict[tuple[Callable, Part], Level]:
    """What `director.direct` asks for between the first step and the last, each program once."""
    asked = {}
    for part, level in steps(sizes, settings):
        alike = part._replace(refreshes=False)
        for program in (refresh, proceed) if part.refreshes else (proceed,):
            asked.setdefault((program, alike), level)
    return asked


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


def abstract_context(sizes: Variant) -> jax.ShapeDtypeStruct:
    """The shape of what the text encoder says of both prompts."""
    shape = 2, sizes.dit.text_len, sizes.dit.text_dim
    return jax.ShapeDtypeStruct(shape, jnp.dtype(sizes.dtype))


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
