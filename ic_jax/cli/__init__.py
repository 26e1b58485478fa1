"""ic-jax: give a video a new camera, or repaint part of it, from the command line."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType

import jax
import tyro

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
    told = __doc__.partition(":")[2].strip().capitalize()
    if sys.argv[1:] == ["--version"]:
        print(*(f"{name} {version(name)}" for name in ("ic-jax", "jax")), sep=", ")
        return
    try:
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="ic-jax", description=told)
        keep_compiled_programs()
        hand_back_after_compiling()
        with file_errors_told(), _missing_device_told(), full_device_told():
            command.run()
            sys.stdout.flush()
    except InputError as error:
        print(f"ic-jax: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        # Whoever read the output has enough of it; at its end Python would flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("ic-jax: stopped", file=sys.stderr)
        sys.exit(130)


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
