"""How the command ends: what has been told to stop leaves devices that are computing still."""

import subprocess
import sys

import pytest

ENDING = """
import atexit, sys, types
command = types.ModuleType("ic_jax.cli")
def main():
    atexit.register(print, "a farewell")
    print("cleaned up")
    sys.exit({code})
command.main = main
sys.modules |= {{"ic_jax": types.ModuleType("ic_jax"), "ic_jax.cli": command}}
import ic_jax_start
ic_jax_start.main()
"""


@pytest.mark.parametrize("code, farewell", [(0, True), (2, True), (130, False), (143, False)])
def test_python_is_left_at_once_by_what_was_told_to_stop(code, farewell, request):
    given = [sys.executable, "-c", ENDING.format(code=code)]
    ended = subprocess.run(given, capture_output=True, text=True, cwd=request.config.rootpath)
    assert ended.returncode == code and ended.stderr == ""
    assert ended.stdout == "cleaned up\n" + farewell * "a farewell\n"
