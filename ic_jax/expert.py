"""The model as the sampler asks it: one expert, told its prompts and what was observed.

Most models are one expert. Wan 2.2's are two, for high and for low noise, that are told the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .conditioning import Conditioning
from .errors import InputError
from .model import Weights
from .models.layout import Layout
from .models.variants import Variant
from .models.wan_dit import Prepared, WanDiT
from .sampling.caching import Halves
from .sampling.denoiser import Denoiser, Velocity, denoiser, guided
from .sampling.schedule import Level
from .settings import Settings, guidance_scale, prompt_count


class Expert(NamedTuple):
    """A generator, with all that it is told of a clip."""

    network: Callable[..., Any]
    """Takes the inputs of a `method` of `WanDiT`, and the method's name."""
    context: Prepared
    conditioning: Conditioning | None
    prompts: int
    """How many it is asked with."""
    guidance_scale: float


def expert(
    sizes: Variant,
    settings: Settings,
    name: str,
    weights: Weights,
    context: Float[Array, "2 l d"] | Prepared,
    conditioning: Conditioning | None,
    layout: Layout = Layout(),
) -> Expert:
    """The expert of that name among the weights.

    `context` may be what `prepare` made of it, which saves that work where this is called often.
    """
    if not isinstance(context, Prepared):
        context = prepare(sizes, settings, name, weights, context, conditioning, layout)
    network = _network(sizes, name, weights, layout)
    prompts = prompt_count(sizes, settings, name)
    return Expert(network, context, conditioning, prompts, guidance_scale(sizes, settings, name))


def prepare(
    sizes: Variant,
    settings: Settings,
    name: str,
    weights: Weights,
    context: Float[Array, "2 l d"],
    conditioning: Conditioning | None,
    layout: Layout = Layout(),
) -> Prepared:
    """What an expert makes of the prompts and of an image, for all of its steps.

    Both prompts, in one batch, or without guidance the last alone.

    Raises:
        InputError: a context of another shape.
    """
    check_context(context, sizes)
    context = context[-prompt_count(sizes, settings, name) :]
    tokens = None
    if conditioning is not None:
        times = lambda leaf: jnp.broadcast_to(leaf, (len(context), *leaf.shape))
        tokens = jax.tree.map(times, conditioning.tokens)
    grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]
    return _network(sizes, name, weights, layout)(grid, context, tokens, method="prepare")


def check_context(context: Array, sizes: Variant) -> None:
    """Raises InputError for what cannot be two prompts: of three, the first would be lost."""
    rows, width = sizes.dit.text_len, sizes.dit.text_dim
    match context.shape:
        case 2, length, found if length <= rows and found == width:
            return
    raise InputError(
        f"context has shape {context.shape}; give (2, up to {rows}, {width}), as embed_prompts "
        "makes of [negative prompt, prompt]"
    )


def denoiser_of(expert: Expert) -> Denoiser:
    """A call of the network, guided by the prompt."""

    def velocity(x: Float[Array, "b t h w c"], timestep: Float[Array, " b"]):
        shown = _shown(x, expert.conditioning)
        return expert.network(shown, timestep, expert.context, method="velocity")

    return _guided(expert, velocity)


def halves_of(expert: Expert, room: int) -> Halves:
    """The same, cut around the network's blocks, whose answer has room for so many prompts.

    Two experts write to the same memory: it has room for `settings.most_prompts`.
    """

    def deep(x: Float[Array, "t h w c"], level: Level) -> Float[Array, "b l d"]:
        shown = _shown(jnp.stack([x] * expert.prompts), expert.conditioning)
        timesteps = jnp.stack([level.timestep] * expert.prompts)
        residual = expert.network(shown, timesteps, expert.context, method="residual")
        return jnp.resize(residual, (room, *residual.shape[1:]))

    def around(residual: Float[Array, "b l d"]) -> Denoiser:
        def velocity(x: Float[Array, "b t h w c"], timestep: Float[Array, " b"]):
            shown = _shown(x, expert.conditioning)
            return expert.network(
                shown, timestep, residual[: expert.prompts], method="velocity_around"
            )

        return _guided(expert, velocity)

    return Halves(deep, around)


def _guided(expert: Expert, velocity: Velocity) -> Denoiser:
    return denoiser(velocity) if expert.prompts == 1 else guided(velocity, expert.guidance_scale)


def _shown(
    x: Float[Array, "b t h w c"], conditioning: Conditioning | None
) -> Float[Array, "b t h w c2"]:
    """What an image model is shown lies beside the noise."""
    if conditioning is None:
        return x
    channels = jnp.broadcast_to(conditioning.channels, (len(x), *conditioning.channels.shape))
    return jnp.concatenate([x, channels], axis=-1)


def _network(sizes: Variant, name: str, weights: Weights, layout: Layout) -> Callable[..., Any]:
    network = WanDiT(sizes.dit, dtype=jnp.dtype(sizes.dtype), layout=layout)
    return partial(network.apply, {"params": getattr(weights, name)})
