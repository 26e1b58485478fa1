"""The command `ic-jax` from its first moment: outside ic_jax, whose import takes a second."""

import os
import signal
from types import FrameType


def main() -> None:
    """Loads the command line, which Ctrl-C may stop, and hands over to it."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, _stop)
    from ic_jax.cli import main as run

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _stop(number: int, frame: FrameType | None) -> None:
    """At once: nothing is under way yet, and libraries half imported swallow what is raised."""
    os.write(2, b"ic-jax: stopped; nothing was written\n")
    os._exit(128 + number)
