"""What compiling frees goes back to the system, where the C library would keep it."""

import ctypes
import os
from functools import cache

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


@cache
def hand_back_after_compiling() -> None:
    """From the first call on, trim the heap of this process whenever JAX has compiled.

    XLA compiles in threads, and glibc leaves each what it freed: 0.2 GB after the autoencoder.
    Where there is no glibc nothing happens. `ic-jax` calls this; a library leaves such choices to
    the program it is part of.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is None:
        return

    def heard(event: str, seconds: float, **_) -> None:
        if event == COMPILED:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(heard)
