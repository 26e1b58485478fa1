"""Whether a model fits, before anything of it is loaded: bytes on each device, and on the host.

The numbers are counted on paper (`cost`), for a run that keeps all networks on the device, and
checked against XLA's own (`tests/test_budget.py`). What a method adds that goes to pixels, or
differentiates through the model, is not counted.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from math import gcd, prod
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import cost
from .errors import InputError
from .models.variants import Variant
from .parallel.choice import Need, Phase, shapes

# float32 numbers per pixel and frame that a run holds beside the networks' own work: the clip,
# its depth and operator, for a later window twice; and what was observed of it.
_GEOMETRY, _OBSERVED = 13, 7
# What filling the holes works with; measured: 13 for a warp, 5 for an edit.
_FILL = 13
# Bytes per pixel and frame of the result, in chunks and joined.
_DECODED = 2 * 3
# Bytes per pixel and frame of a clip's own size that the host holds of it and of its warp: frames,
# depth and what is no padding; what was observed, and how much of it.
_WARPED = 3 + 4 + 1 + 3 + 4

# Of a GPU's memory JAX takes three quarters at first, and up to this share if told to.
DEFAULT_SHARE, LARGEST_SHARE = 0.75, 0.95
SHARE_VARIABLE = "XLA_CLIENT_MEM_FRACTION"

# What the estimate is at most too high by: below this share of it nothing works.
CERTAIN = 0.5


class Budget(NamedTuple):
    """Bytes."""

    weights: dict[str, int]
    """On each device, by network."""
    umt5_block: int
    """The text encoder on the device, which has come and gone before the others are loaded."""
    phases: dict[str, int]
    """Beside the weights, one at a time: encode, sample, decode."""
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """At most at once, on each device."""
        return max(self.umt5_block, sum(self.weights.values()) + max(self.phases.values()))


class Memory(NamedTuple):
    """Bytes of a device or a host: all that there could be, and what is free now."""

    limit: int
    free: int


def networks(sizes: Variant) -> dict[str, list[cost.Layer]]:
    """The layers of each network, over one clip, one prompt and one image."""
    clip = (sizes.frames, sizes.height, sizes.width)
    encoder, decoder = cost.vae_layers(sizes.vae, clip)
    dit = cost.dit_layers(sizes.dit, sizes.vae.latent_shape(*clip)[:3])
    layers = {"dit": dit}
    if sizes.boundary is not None:
        layers["dit_low"] = dit
    layers |= {"vae": encoder + decoder, "umt5": cost.umt5_layers(sizes.umt5, sizes.dit.text_len)}
    if sizes.clip is not None:
        layers["clip"] = cost.clip_layers(sizes.clip)
    return layers


def predict(
    sizes: Variant,
    calls: int,
    *,
    parameters: Mapping[str, int] | None = None,
    devices: int = 1,
    parts: int = 1,
    reuse: bool = False,
) -> Budget:
    """The memory of a run of one clip, whose denoiser is asked with `calls` prompts at a time.

    `parameters` counts those of each network, as stored; by default those that the variant has.
    On several devices the tokens of the transformer are shared out, and the rows of the
    autoencoder's frames; the transformer's weights are cut into `parts` (`most_parts`). `reuse`
    says whether what the blocks added is kept for later steps.
    """
    if parameters is None:
        parameters = {name: cost.parameters(part) for name, part in networks(sizes).items()}
    itemsize = jnp.dtype(sizes.dtype).itemsize
    stored = {
        name: count * (cost.FLOAT32 if name == "vae" else itemsize)
        for name, count in parameters.items()
    }
    host = {name: size for name, size in stored.items() if name == "umt5"}
    weights = {name: size for name, size in stored.items() if name not in host}
    for name in weights.keys() & {"dit", "dit_low"}:
        weights[name] //= parts
    block = _umt5_block(sizes) * itemsize if host else 0
    phases = _phases(sizes, calls, itemsize, reuse).items()
    work = {name: phase.per_device(devices, parts) for name, phase in phases}
    return Budget(weights, block, work, host)


def need(sizes: Variant, calls: int, reuse: bool = False) -> Need:
    """The bytes of a run by what divides them on a mesh, as `parallel.choose` weighs them."""
    weights = predict(sizes, calls).weights
    itemsize = jnp.dtype(sizes.dtype).itemsize
    transformer = sum(weights.pop(name, 0) for name in ("dit", "dit_low"))
    return Need(
        transformer=transformer,
        rest=sum(weights.values()),
        phases=tuple(_phases(sizes, calls, itemsize, reuse).values()),
    )


def most_parts(sizes: Variant, calls: int, devices: int) -> int:
    """Into how many parts a run of one clip on so many devices can cut the transformer's weights.

    1 where they do not divide, and every device has all of them.
    """
    given = {"prompts": calls, "width": weight_rows(sizes)}
    return max(shape.weights for shape in shapes(devices, sizes.dit.num_heads, **given))


def weight_rows(sizes: Variant) -> int:
    """What the rows of all matrices in the transformer's blocks are multiples of."""
    return gcd(sizes.dit.dim, sizes.dit.ffn_dim)


def _phases(sizes: Variant, calls: int, itemsize: int, reuse: bool) -> dict[str, Phase]:
    size = sizes.frames, sizes.height, sizes.width
    plane = cost.FLOAT32 * prod(size)
    grid = sizes.vae.latent_shape(*size)[:3]
    chunked = sizes.chunk is not None
    encoder, decoder = cost.vae_layers(sizes.vae, (sizes.chunk or sizes.frames, *size[1:]))
    encode, decode = (cost.vae_memory(half, chunked) for half in (encoder, decoder))
    tokens = cost.dit_memory(sizes.dit, grid, calls, itemsize)
    block = cost.block_memory(sizes.dit, itemsize)
    text = cost.prepared_memory(sizes.dit, calls, itemsize)
    said, saying = cost.reuse_memory(sizes.dit, grid, calls) if reuse else (0, 0)
    rows = sizes.height, grid[1]
    return {
        # One program fills the holes and encodes; on a TPU the two do not share their memory.
        "encode": Phase((_GEOMETRY + _OBSERVED + _FILL) * plane, encode, rows),
        # A block that is gathered is there twice more: in use, and on its way.
        "sample": Phase(
            _OBSERVED * plane + text + block, tokens + said + saying, gathered=2 * block
        ),
        "decode": Phase(_OBSERVED * plane + _DECODED * prod(size) + text, decode, rows),
    }


def _umt5_block(sizes: Variant) -> int:
    """Parameters of one block of the text encoder."""
    none, one = (
        cost.parameters(cost.umt5_layers(replace(sizes.umt5, layers=layers), sizes.dit.text_len))
        for layers in (0, 1)
    )
    return one - none


# What there is --------------------------------------------------------------------


def fits(peak: int, gigabytes: int) -> str:
    """Whether a card fits `peak`: yes, no, or yes once JAX is told to take more of it."""
    card = gigabytes * 10**9
    if peak <= DEFAULT_SHARE * card:
        return "yes"
    if peak > LARGEST_SHARE * card:
        return "no"
    return f"on a GPU with {SHARE_VARIABLE}={LARGEST_SHARE}"


def device_memory(device: jax.Device) -> Memory | None:
    """What JAX may use of a device, or of the host where that is the device; None if unknown."""
    return memory_of(device.platform, device.memory_stats() or {})


def memory_of(platform: str, stats: Mapping[str, int]) -> Memory | None:
    """The same from what a device of this platform says of itself."""
    if "bytes_limit" in stats:
        limit = stats["bytes_limit"]
        return Memory(limit, limit - stats.get("bytes_in_use", 0))
    return host_memory() if platform == "cpu" else None


def host_memory(root: Path = Path("/")) -> Memory | None:
    """Linux's memory and swap, within the limit of the container; None on other systems."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        limit = 1024 * (kib["MemTotal"] + kib["SwapTotal"])
        free = 1024 * (kib["MemAvailable"] + kib["SwapFree"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
    with suppress(OSError, ValueError):  # no such file, or the word max
        limit = min(limit, int((root / "sys/fs/cgroup/memory.max").read_text()))
    return Memory(limit, min(limit, free))


# The verdict ----------------------------------------------------------------------


def check_fits(
    name: str, sizes: Variant, calls: int, memory: Memory | None, reuse: bool = False
) -> str | None:
    """One line of warning where a run may not fit; None where it does, or nobody knows.

    `calls` and `reuse` are those of `predict`.

    Raises:
        InputError: it cannot fit, however far off the estimate is.
    """
    if memory is None:
        return None
    budget = predict(sizes, calls, reuse=reuse)
    certain = sum(budget.weights.values()) + int(CERTAIN * max(budget.phases.values()))
    if certain > memory.limit:
        raise InputError(
            f"{name} at {_size(sizes)} needs {_gib(certain)} of memory at the very least, and the "
            f"device has {_gib(memory.limit)}; {_advice(budget, memory)}"
        )
    return doubt(name, sizes, budget.peak, memory.free, "the device")


def doubt(name: str, sizes: Variant, needed: int, free: int, holder: str) -> str | None:
    """One line of warning where so many bytes may not fit; None where they do."""
    if needed <= free:
        return None
    return (
        f"{name} at {_size(sizes)} may need {_gib(needed)} of memory, and {holder} has "
        f"{_gib(free)} free"
    )


def check_host_fits(name: str, sizes: Variant, memory: Memory | None) -> None:
    """Raises InputError if the host cannot hold the text encoder."""
    needed = predict(sizes, 1).host["umt5"]
    if memory is not None and needed > memory.limit:
        raise InputError(
            f"the text encoder of {name} needs {_gib(needed)} of this host's memory, and it has "
            f"{_gib(memory.limit)}; run ic-jax embed elsewhere and pass --context"
        )


def most_frames(height: int, width: int, memory: Memory | None) -> int | None:
    """Of a clip of this size, in pixels, that the host has memory to warp; None if unknown.

    Of fewer it may run out as well: what the warp works with is not counted.
    """
    return None if memory is None else memory.limit // (_WARPED * height * width)


class full_device_told(AbstractContextManager[None]):
    """Makes what is raised where memory ran out all the same an InputError with this advice.

    A generator would leave a cycle of frames behind, and the arrays of what has failed in it.
    """

    def __init__(
        self,
        advice: str = "give fewer --frames, a smaller --height and --width, or more --devices "
        "(ic-jax info counts)",
    ) -> None:
        self._advice = advice

    def __exit__(self, kind, error: BaseException | None, traceback) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            raise InputError(f"a device ran out of memory; {self._advice}") from error
        if isinstance(error, MemoryError):
            told = "this host ran out of memory; give a shorter or smaller clip"
            raise InputError(told) from error


def _advice(budget: Budget, memory: Memory) -> str:
    if sum(budget.weights.values()) > memory.limit:
        return "its weights alone are larger: take a smaller model, or a larger device"
    return "give fewer --frames, or a smaller --height and --width (ic-jax info counts)"


def _size(sizes: Variant) -> str:
    return f"{sizes.frames} frames of {sizes.width}x{sizes.height}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
