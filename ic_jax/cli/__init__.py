"""ic-jax: give a video a new camera, or repaint part of it, from the command line."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType

import jax

from ..budget import full_device_told
from ..errors import InputError, file_errors_told
from ..heap import hand_back_after_compiling
from .batch import Batch
from .calibrate import Calibrate
from .compile_cache import keep_compiled_programs
from .convert import Convert
from .embed import Embed
from .info import Info
from .inpaint import Inpaint
from .recapture import Recapture
from .usage import parsed
from .verify import Verify
from .warmup import Warmup
from .warp import Warp

COMMANDS = {
    "recapture": Recapture,
    "inpaint": Inpaint,
    "batch": Batch,
    "warp": Warp,
    "convert": Convert,
    "verify": Verify,
    "info": Info,
    "embed": Embed,
    "calibrate": Calibrate,
    "warmup": Warmup,
}


def main() -> None:
    """Entry point: exit code 2 and one line for bad input."""
    _clean_up_when_told_to_stop()
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by somebody who wants to hear nothing
            setattr(sys, name, open(os.devnull, "w"))
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"ic-jax: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has enough of it
        _say_no_more()
        sys.exit(141)
    except OSError as error:
        if _can_be_said():  # then it is of something else, and a defect
            raise
        _say_no_more()
        print(f"ic-jax: standard output cannot be written ({error.strerror})", file=sys.stderr)
        sys.exit(_UNWRITTEN)
    except KeyboardInterrupt:
        print("ic-jax: stopped", file=sys.stderr)
        sys.exit(130)


# Neither bad input nor a job that failed: EX_IOERR of sysexits.h.
_UNWRITTEN = 74


def _run() -> None:
    told = __doc__.partition(":")[2].strip().capitalize()
    if sys.argv[1:] == ["--version"]:
        print(*(f"{name} {version(name)}" for name in ("ic-jax", "jax")), sep=", ")
        return
    command = parsed(COMMANDS, prog="ic-jax", description=told)
    keep_compiled_programs()
    hand_back_after_compiling()
    with file_errors_told(), _missing_device_told(), full_device_told():
        command.run()


def _can_be_said() -> bool:
    """Whether standard output takes one more line."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _say_no_more() -> None:
    """At its end Python would flush once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _missing_device_told() -> Iterator[None]:
    """Makes what JAX raises where it has no device an InputError, for commands that need one."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        try:
            jax.devices()  # JAX may have said no more than AssertionError
        except (AssertionError, RuntimeError) as reason:
            raise InputError(_without_device(str(reason).partition("\n")[0])) from error
        raise


def _without_device(reason: str) -> str:
    asked = jax.config.jax_platforms
    if not asked:
        return f"JAX has no device to run on: {reason}"
    reason = reason.partition(" (set JAX_PLATFORMS")[0] or "there is none"
    return (
        f"JAX_PLATFORMS is {asked}, and JAX cannot use that here: {reason}; "
        "install '.[cuda]' or '.[tpu]', or unset JAX_PLATFORMS"
    )


def _clean_up_when_told_to_stop() -> None:
    """As on Ctrl-C; but what our parent has us ignore (nohup) stays ignored."""

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGTERM:
            # A terminal that is closed says so twice, which is nobody's impatience.
            signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
