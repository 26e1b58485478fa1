"""The command `ic-jax` from its first moment to its last: outside ic_jax, which takes a second."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Loads the command line, which Ctrl-C may stop, and hands over to it."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, _stop)
    from ic_jax.cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except SystemExit as end:
        if end.code in _STOPPED:
            _leave(end.code)
        raise


# By Ctrl-C, SIGTERM or a closed terminal.
_STOPPED = 130, 143, 129


def _stop(number: int, frame: FrameType | None) -> None:
    """At once: nothing is under way yet, and libraries half imported swallow what is raised."""
    os.write(2, b"ic-jax: stopped; nothing was written\n")
    os._exit(128 + number)


def _leave(code: int) -> NoReturn:
    """All is cleaned up but Python: devices may be computing still, and JAX would crash in it."""
    import jax

    if jax.distributed.is_initialized():  # the other hosts are told
        jax.distributed.shutdown()
    with suppress(OSError):  # whoever read it is gone
        sys.stdout.flush()
    os._exit(code)
