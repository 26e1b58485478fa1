"""What a user is told when the input is wrong."""


class InputError(ValueError):
    """One line that says what is wrong, in which file, and what to do about it.

    The command line prints it and exits with code 2; everything else that is
    raised is a defect of ours and keeps its traceback.
    """
