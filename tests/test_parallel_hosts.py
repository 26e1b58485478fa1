"""Two processes with four devices each are one machine with eight."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_transformer

from ic_jax.errors import InputError
from ic_jax.leafwise import save_leaves
from ic_jax.parallel import join, mine

HERE = Path(__file__).parent
FOUR = os.environ | {
    # XLA takes the last of two.
    "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4",
    "PYTHONPATH": str(HERE.parent),
    # What the test compares with was made at this precision (conftest).
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}


@pytest.fixture
def port():
    """One that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_hosts_give_what_one_gives(tmp_path, port):
    save_leaves(tmp_path / "leaves.orbax", ["a"], [("a", np.arange(3))])
    command = [sys.executable, str(HERE / "loopback.py"), f"127.0.0.1:{port}", "2"]
    hosts = [subprocess.Popen([*command, str(n), str(tmp_path)], env=FOUR) for n in range(2)]
    try:
        assert [host.wait(timeout=560) for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    _, expected = tiny_transformer.on_one()
    for n in range(2):
        for found in np.load(tmp_path / f"{n}.npy"):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    told = {path.name: path.read_text() for path in tmp_path.iterdir() if not path.suffix}
    first, second = (f"{n}: 4 of 8 devices" for n in range(2))
    assert told == {"a": first, "b": second, "c": first}


# What JAX tells CUDA's plugin, which is nowhere public.
VISIBLE = """
from ic_jax import parallel
from jax._src import xla_bridge
parallel.join("127.0.0.1:{}", 1, 0)
print(xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""


@pytest.mark.parametrize("tasks, visible", [(1, "all"), (2, "0")])
def test_a_task_that_slurm_gave_a_host_has_all_of_its_gpus(port, tasks, visible):
    slurm = {"NTASKS": tasks, "STEP_NUM_NODES": 1, "PROCID": 0, "LOCALID": 0, "JOB_ID": 7}
    slurm = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
    slurm["SLURM_STEP_NODELIST"] = "localhost"
    command = [sys.executable, "-c", VISIBLE.format(port)]
    done = subprocess.run(command, env=FOUR | slurm, capture_output=True, text=True, timeout=200)
    assert done.stdout == f"{visible}\n", done.stderr


def test_one_host_has_all_clips():
    assert mine(["b", "a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_coordinator_that_is_not_there_is_waited_for_a_bounded_time(host, port):
    began, address = time.monotonic(), f"{host}:{port}"
    with pytest.raises(InputError, match=f"no coordinator at {re.escape(address)} within 1 s"):
        join(address, 2, 1, timeout=1)
    assert time.monotonic() - began < 60


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of this host cannot be listened to"):
            join(f"127.0.0.1:{port}", 2, 0, timeout=1)


def test_the_other_hosts_are_waited_for_a_bounded_time(port):
    alone = f"from ic_jax.parallel import join; join('127.0.0.1:{port}', 2, 0, timeout=2)"
    command = [sys.executable, "-c", alone]
    host = subprocess.run(command, env=FOUR, capture_output=True, text=True, timeout=300)
    assert f"InputError: not all processes met at 127.0.0.1:{port} within 2 s" in host.stderr
    assert host.returncode == 1  # JAX itself would abort


@pytest.mark.parametrize(
    "error, complaint",
    [
        (ValueError("coordinator_address should be defined."), "^no cluster was found here .Value"),
        (KeyError("job-name"), "^no cluster was found here .KeyError: 'job-name'.; give --coord"),
        (RuntimeError("no right to list pods\nsee"), "here .RuntimeError: no right to list pods.;"),
        (
            jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: too late\nat line 1"),
            "^the processes did not meet at the coordinator: .*: DEADLINE_EXCEEDED: too late$",
        ),
    ],
    ids=["no cluster", "one without a job", "one that refuses", "one that fails"],
)
def test_without_flags_a_cluster_that_cannot_be_joined_is_one_line(monkeypatch, error, complaint):
    def initialize(*given, **more):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=complaint):
        join()


def test_with_flags_what_keeps_them_from_meeting_is_one_line(monkeypatch, port):
    def initialize(*given, **more):
        raise ValueError("invalid literal in JAX_LOCAL_DEVICE_IDS")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    complaint = f"^the processes did not meet at 127.0.0.1:{port}: ValueError: invalid literal"
    with pytest.raises(InputError, match=complaint):
        join(f"127.0.0.1:{port}", 1, 0)


@pytest.mark.parametrize("process", [0, 1])
def test_a_host_whose_name_nobody_knows_is_waited_for_a_bounded_time(monkeypatch, port, process):
    def nobody(*given, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    complaint = "no such host was known within 1 s .Name or service not known.; give the name"
    with pytest.raises(InputError, match=complaint):
        join(f"nowhere:{port}", 2, process, timeout=1)


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (("127.0.0.1:1", 2, None), "or none of them"),
        (("127.0.0.1:1", 2, 2), "--process-id is 2; give 0 to 1"),
        (("127.0.0.1:1", 0, 0), "--num-processes is 0; give 1 or more"),
        (("nowhere", 2, 1), "--coordinator is 'nowhere'; give host:port"),
        (("nowhere", 2, 0), "--coordinator is 'nowhere'; give host:port"),
        (("127.0.0.1:99999", 2, 1), "--coordinator is '127.0.0.1:99999'; give host:port"),
        (("127.0.0.1:0", 2, 1), "with a port from 1 to 65535"),
        (("127.0.0.1:" + 5000 * "9", 2, 1), "with a port from 1 to 65535"),
        (("::1:4000", 2, 1), "--coordinator is '::1:4000'; give host:port or .IPv6 address.:port"),
        (("[::1]4000", 2, 1), "give host:port or .IPv6"),
        (("[fine]:4000", 2, 1), "give host:port or .IPv6"),
        (("a..b:4000", 2, 1), "give host:port or .IPv6"),
        (("http://a:4000", 2, 1), "give host:port or .IPv6"),
        ((None, None, None, 0), "--join-timeout is 0; give seconds from 1 to 86400"),
        ((None, None, None, 2**70), "give seconds from 1 to 86400"),
    ],
)
def test_flags_that_say_too_little_are_refused(flags, complaint):
    with pytest.raises(InputError, match=complaint):
        join(*flags)
