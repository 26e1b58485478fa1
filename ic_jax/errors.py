"""What a user is told when the input is wrong."""

from errno import EDQUOT, EFBIG, ENOSPC

# Of an OSError: it is not the file that is wrong.
DISK_FULL = {ENOSPC, EDQUOT, EFBIG}


class InputError(ValueError):
    """One line that says what is wrong, in which file, and what to do about it.

    The command line prints it and exits with code 2; everything else that is
    raised is a defect of ours and keeps its traceback.
    """
