"""What a user is told when the input is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC

# Of an OSError: it is not the file that is wrong.
DISK_FULL = {ENOSPC, EDQUOT, EFBIG}


class InputError(ValueError):
    """One line that says what is wrong, in which file, and what to do about it.

    The command line prints it and exits with code 2; everything else that is
    raised is a defect of ours and keeps its traceback.
    """


@contextmanager
def file_errors_told() -> Iterator[None]:
    """Makes an OSError that names its file an InputError: no right to read it, a name too long."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(f"{error.filename}: {error.strerror}; give another") from error
