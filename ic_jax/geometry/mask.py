"""The operator of editing: the identity, where a mask keeps it."""

from typing import NamedTuple

from jaxtyping import Array, Float

from ic_jax.errors import InputError


class MaskOperator(NamedTuple):
    """`WarpOperator`'s protocol for a camera that stays: a diagonal of what is kept."""

    visible: Float[Array, "*b t h w"]
    """1 where the source is kept, 0 where it is to be generated."""

    def apply(self, clip: Float[Array, "t h w c"]) -> Float[Array, "t h w c"]:
        """The kept part; zeros elsewhere. Raises InputError for a clip of another size."""
        check_size(self.visible, clip)
        return self.visible[..., None] * clip

    def adjoint(self, clip: Float[Array, "t h w c"]) -> Float[Array, "t h w c"]:
        """The transpose of `apply`, which is `apply`."""
        return self.apply(clip)


def check_size(visible: Float[Array, "*b t h w"], clip: Float[Array, "*c"]) -> None:
    """Raises InputError unless the clip has the frames, height and width of its operator.

    Gathering or broadcasting would make a picture of any other, and a wrong one.
    """
    if clip.shape[:-1] != visible.shape:
        raise InputError(
            f"the clip is {clip.shape[:-1]} and its operator {visible.shape};"
            " give both the same frames, height and width"
        )
