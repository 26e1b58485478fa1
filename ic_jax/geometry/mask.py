"""The operator of editing: the identity, where a mask keeps it."""

from typing import NamedTuple

from jaxtyping import Array, Float


class MaskOperator(NamedTuple):
    """`WarpOperator`'s protocol for a camera that stays: a diagonal of what is kept."""

    visible: Float[Array, "*b t h w"]
    """1 where the source is kept, 0 where it is to be generated."""

    def apply(self, clip: Float[Array, "t h w c"]) -> Float[Array, "t h w c"]:
        """The kept part; zeros elsewhere."""
        return self.visible[..., None] * clip

    def adjoint(self, clip: Float[Array, "t h w c"]) -> Float[Array, "t h w c"]:
        """The transpose of `apply`, which is `apply`."""
        return self.apply(clip)
