"""Mistakes on the command line, for which tyro draws a box: each in one line."""

import difflib
import io
import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr
from typing import Any

import tyro

from ..errors import InputError


def parsed(commands: Mapping[str, type], **told: str) -> Any:
    """The command that the user asks for, with its options.

    Raises:
        InputError: there is no such command or option, or no such value of it.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(dict(commands), **told)
    except SystemExit as end:
        line = end.code and _one_line(said.getvalue(), sys.argv[1:], commands)
        if line:
            raise InputError(line) from end
        sys.stderr.write(said.getvalue())
        raise


def _one_line(box: str, words: list[str], commands: Mapping[str, type]) -> str:
    """What the first paragraph of a box says, and what may help; "" where there is no box."""
    rows = [row[1:-1].strip() for row in box.splitlines() if row[:1] == row[-1:] == "│"]
    wrong = " ".join(rows[: next((n for n, row in enumerate(rows) if not row.strip("─")), None)])
    if not wrong:
        return ""
    command = next((word for word in words[:1] if word in commands), "")
    near = re.search(r"Perhaps you meant: (--[\w-]+)", " ".join(rows))
    if near and near[1] not in words and f"in ic-jax {command} --help" in rows:
        wrong += f"; did you mean {near[1]}?"
    elif not command and (alike := difflib.get_close_matches("".join(words[:1]), commands, 1)):
        wrong += f"; did you mean {alike[0]}?"
    for word in words:
        if word.startswith("-") and os.path.exists(word):
            wrong += f"; give that file as ./{word}"
    end = "" if wrong.endswith("?") else ";"
    return f"{wrong.removesuffix('.')}{end} see {f'ic-jax {command}'.strip()} --help"
