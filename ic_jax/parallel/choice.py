"""Which mesh: the one that moves the least, of those that fit into memory."""

from functools import partial
from typing import NamedTuple

from ic_jax.errors import InputError

from .mesh import MeshShape, axis_sizes, shares_rows, weight_axes

_GIB = 1 << 30


class Phase(NamedTuple):
    """Bytes of a part of a run, weights aside."""

    whole: int
    """What every device of a clip has: its pixels, the text."""
    shared: int
    """What they divide: tokens of the transformer, rows of the autoencoder's frames."""
    rows: tuple[int, int] | None = None
    """Those of frames and of latents, if it is these that devices share: not all can."""
    gathered: int = 0
    """What every device has as well where weights are cut: those that it puts together again."""

    def per_device(self, devices: int, parts: int) -> int:
        """Those on each of the devices of a clip, with the weights in so many parts."""
        alone = self.rows is not None and not shares_rows(devices, *self.rows)
        gathered = self.gathered if parts > 1 else 0
        return self.whole + self.shared // (1 if alone else devices) + gathered


class Need(NamedTuple):
    """Bytes of one clip on one device, by what divides them."""

    transformer: int
    """Matrices that can be cut: those of a network of two experts together."""
    rest: int
    """The other weights, which every device has: those of the autoencoder, for one."""
    phases: tuple[Phase, ...]
    """One at a time, with both prompts."""


def per_device(need: Need, shape: MeshShape, certain: float = 1.0) -> int:
    """Estimate of the bytes that each device of a mesh needs; with this share of the work alone."""
    devices = shape.prompts * shape.sequence
    work = max(phase.per_device(devices, shape.weights) for phase in need.phases)
    return need.transformer // shape.weights + need.rest + int(certain * work)


def choose(
    need: Need,
    devices: int,
    memory: int,
    heads: int,
    clips: int = 1,
    prompts: int = 2,
    width: int = 0,
    certain: float = 1.0,
) -> MeshShape:
    """The first of `shapes` that fits on so many devices of `memory` bytes each.

    Where none does, the most frugal of those that would if the estimate of their work were so
    far off that only the share `certain` of it is needed.

    Raises:
        InputError: not even then does any shape fit.
    """
    possible = shapes(devices, heads, clips, prompts, width)
    may = [shape for shape in possible if per_device(need, shape, certain) <= memory]
    if not may:
        least = min(per_device(need, shape, certain) for shape in possible)
        raise InputError(
            f"the model needs at least {least / _GIB:.1f} GiB on each of {devices} devices, which "
            f"have {memory / _GIB:.1f}; use more devices, a smaller size or fewer frames"
        )
    fitting = (shape for shape in may if per_device(need, shape) <= memory)
    return next(fitting, min(may, key=partial(per_device, need)))


def shapes(
    devices: int, heads: int, clips: int = 1, prompts: int = 2, width: int = 0
) -> list[MeshShape]:
    """All shapes that `clips` clips may have on so many devices, the one that moves least first.

    Clips side by side exchange nothing, so that as many as are there come first; then the two
    prompts of guidance, which exchange a latent; the sequence takes the devices that are left.
    Weights are cut no further than memory asks for, and into parts that divide `width`: what
    the rows of all blocks' matrices are multiples of, 0 for of anything.
    """
    return [
        shape
        for side_by_side in range(min(clips, devices), 0, -1)
        if devices % side_by_side == 0
        for shape in _with_weights(_one_clip(devices // side_by_side, prompts), side_by_side, heads)
        if width % shape.weights == 0
    ]


def _one_clip(devices: int, prompts: int) -> MeshShape:
    apart = prompts if devices % prompts == 0 else 1
    return MeshShape(prompts=apart, sequence=devices // apart)


def _with_weights(shape: MeshShape, clips: int, heads: int) -> list[MeshShape]:
    """From whole weights to those that are cut the most."""
    shape = shape._replace(clips=clips)
    return [shape._replace(weights=n) for n in weight_axes(axis_sizes(shape, heads))]
