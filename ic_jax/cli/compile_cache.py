"""Compiled programs outlive the run that made them, in the user's cache folder.

Only the command line does this: a library leaves such choices to the program it is part of.
"""

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from errno import EPERM
from pathlib import Path

import jax

from .console import note

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
LEAST_VARIABLE = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

# How JAX warns; it then goes on without.
_TROUBLE = (
    r"Error (reading|writing) persistent compilation cache entry for '.*?': "
    r"(?:\w+: )?(?:\[Errno \d+\] )?(.*)"
)


def keep_compiled_programs() -> None:
    """Have JAX keep what it compiles, unless the user has told it where to, or not to.

    JAX's own variables come first: JAX_COMPILATION_CACHE_DIR moves the folder and, where it is
    empty, switches this off; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS leaves out what compiles
    faster. A folder that cannot be written costs a line and nothing else.
    """
    tell_of_trouble()
    if VARIABLE not in os.environ and jax.config.jax_compilation_cache_dir is None:
        _keep_in_our_own_place()
    # A run has dozens of small programs, which together take longer than one large one.
    if LEAST_VARIABLE not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _keep_in_our_own_place() -> None:
    try:
        folder = made(cache_folder())
        _check_owned(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = getattr(error, "strerror", None) or error
        note(f"compiled programs are not kept for the next run ({reason}); set {VARIABLE}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def tell_of_trouble(unkept: Callable[[str], None] | None = None) -> None:
    """From now on one line says what JAX would warn of for each program that it reads or writes.

    What a full disk cut short JAX neither uses nor replaces. Such entries are removed, so that
    they can be written again. `unkept` is given the line where a program is not kept.
    """
    warnings.filterwarnings("always", _TROUBLE, UserWarning)
    usual, said = warnings.showwarning, []

    def once(line: str) -> None:
        if not said:
            note(line)
        said.append(line)

    def heard(message: Warning | str, *where, **more) -> None:
        trouble = re.match(_TROUBLE, str(message))
        if trouble is None:
            return usual(message, *where, **more)
        doing, reason = trouble.groups()
        if _removed() and doing == "reading":  # JAX is about to write it
            return once(f"a kept program cannot be read ({reason}); it is compiled anew")
        folder = jax.config.jax_compilation_cache_dir
        (unkept or once)(
            f"compiled programs are not kept for the next run ({reason}); "
            f"set {VARIABLE} to another folder than {folder}"
        )

    warnings.showwarning = heard


def _removed() -> bool:
    """Whether the entry that JAX is warning of was there, and is no more."""
    # The warning names the program, of which good entries may lie there too; JAX knows which it is.
    frames = getattr(sys.exception(), "__traceback__", None)
    key = frames and frames.tb_frame.f_locals.get("cache_key")
    try:
        Path(jax.config.jax_compilation_cache_dir, f"{key}-cache").unlink()
    except OSError:
        return False
    return True


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/ic-jax/xla, by default in ~/.cache. Raises RuntimeError without a home."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = chosen if chosen.is_absolute() else Path.home() / ".cache"
    return base / "ic-jax" / "xla"


def made(folder: Path) -> Path:
    """The folder, which only its user can write if it was not there before.

    Raises:
        OSError: it cannot be made, or not be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _check_owned(folder: Path) -> None:
    """Raises PermissionError where others can write into it: what lies there is run."""
    if os.name != "posix":  # elsewhere modes say nothing
        return
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(EPERM, f"others can write into {folder}")
