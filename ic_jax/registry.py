"""Tables that a user adds methods, masks and solvers to."""

from collections import UserDict
from typing import TypeVar

import jax

Entry = TypeVar("Entry")


class Registry(UserDict[str, Entry]):
    """What a name stands for.

    Settings hold the name, and jit knows its programs by that alone: where a name changes hands,
    as it does while its user is still at work on it, all are forgotten.
    """

    def __setitem__(self, name: str, entry: Entry) -> None:
        if name in self:
            jax.clear_caches()
        super().__setitem__(name, entry)

    def __delitem__(self, name: str) -> None:
        jax.clear_caches()
        super().__delitem__(name)
