"""What a mistake on the command line costs: one line; and so does an output that goes nowhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from ic_jax.cli import main


@pytest.mark.parametrize(
    "words, said",
    [
        (["recapture", "--steps", "many"], "--steps: {}'many'{}; see ic-jax recapture --help"),
        (["recapture", "--sead", "1"], "--sead, 1; did you mean --seed? see ic-jax recapture"),
        (["recaptur"], "Unrecognized options: recaptur; did you mean recapture? see ic-jax --help"),
        (["warp", "-dash.mp4"], "-dash.mp4; give that file as ./-dash.mp4; see ic-jax warp --help"),
        (["info", "--devices", "2.5"], "--devices: {}'2.5'; see ic-jax info --help"),
        (["batch"], "Missing from ic-jax batch: PATH {}; see ic-jax batch --help"),
        (["recapture", "--camera"], "Missing value for argument '--camera'{}recapture --help"),
        ([], "Expected one of {{recapture, {}}}; see ic-jax --help"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_a_mistake_is_one_line(run, tmp_path, monkeypatch, words, said, columns):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", columns)
    Path("-dash.mp4").touch()
    code, stdout, stderr = run(*words)
    assert code == 2 and stdout == "" and stderr.startswith("ic-jax: ") and stderr.count("\n") == 1
    rest = stderr
    for part in said.replace("{{", "{").replace("}}", "}").split("{}"):
        assert part in rest
        rest = rest.partition(part)[2]


def test_an_option_of_another_command_is_not_what_was_meant(run):
    code, _, stderr = run("warp", "--steps", "3")
    assert code == 2 and "--steps" in stderr and "did you mean" not in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(
    "said", ["", "usage: a parser of another kind\nwrong\n", "╭─ A ─╮\n╰──╯\n"]
)
def test_what_looks_otherwise_is_said_as_it_is(run, monkeypatch, said):
    def cli(*given, **named):
        print(said, end="", file=sys.stderr)
        sys.exit(2)

    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", cli)
    assert run("recaptur") == (2, "", said)


def test_help_is_no_mistake(run):
    code, stdout, stderr = run("warp", "--help")
    assert code == 0 and "usage: ic-jax warp" in stdout and stderr == ""


def in_a_shell(command, folder, **variables):
    command = command.replace("ic-jax", f"{sys.executable} -m ic_jax")
    given = {"env": os.environ | variables, "cwd": folder, "capture_output": True, "text": True}
    return subprocess.run(["sh", "-c", command], **given)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_outlives_an_output_that_cannot_be_written(tmp_path, unbuffered):
    variables = {"PYTHONUNBUFFERED": unbuffered}
    ended = in_a_shell("ic-jax warp --out out >/dev/full", tmp_path, **variables)
    line = "ic-jax: standard output cannot be written (No space left on device)\n"
    assert ended.returncode == 74 and ended.stderr.endswith(line)
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
    assert (tmp_path / "out" / "result.json").exists()
    for option in "--help", "--version":
        ended = in_a_shell(f"ic-jax {option} >/dev/full", tmp_path, **variables)
        assert (ended.returncode, ended.stderr) == (74, line)


def test_who_closed_the_output_wants_to_hear_nothing(tmp_path):
    ended = in_a_shell("ic-jax warp --out out >&- 2>&-", tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "out" / "result.json").exists()


def test_an_error_of_something_else_keeps_its_traceback(monkeypatch):
    def fail(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.argv", ["ic-jax", "warp"])
    monkeypatch.setattr("ic_jax.cli.parsed", fail)
    with pytest.raises(OSError, match="No space left"):
        main()
