"""Several hosts: finding each other, and which of the clips are whose."""

import socket
import time
from collections.abc import Iterable
from threading import Thread

import jax
import orbax.checkpoint as ocp

from ic_jax.errors import InputError

# Seconds: hosts may have clips of very different lengths.
_LONG = 30 * 24 * 3600


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = 120,
) -> None:
    """Make this process one of many, before anything else is asked of JAX.

    On TPU pods, under SLURM and in Kubernetes JAX finds out all by itself; elsewhere every
    process is told the `coordinator` ("host:port", where process 0 is), how many processes there
    are, and its own number among them. `jax.devices()` are then those of all hosts.

    Raises:
        InputError: no such cluster, or not all of it there in time: `timeout` seconds each until
            the coordinator listens, and until all have met.
    """
    given = coordinator, processes, process
    if any(value is not None for value in given):
        if None in given:
            raise InputError(
                "give --coordinator, --num-processes and --process-id, or none of them"
            )
        if processes < 1:
            raise InputError(f"--num-processes is {processes}; give 1 or more")
        if not 0 <= process < processes:
            raise InputError(f"--process-id is {process}; give 0 to {processes - 1}")
        address = _address(coordinator)
        if process > 0:
            _knock(address, timeout)
        else:
            _check_free(address[1])
    _meet(given, timeout)


def _meet(given: tuple[str | None, int | None, int | None], timeout: int) -> None:
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(*given, initialization_timeout=2 * timeout + 60)
        except Exception as error:
            failures.append(error)

    # When its own time is up JAX ends the process, with a stack trace; ours is up before.
    where = given[0] or "the coordinator"
    meeting = Thread(target=initialize, daemon=True)
    meeting.start()
    meeting.join(timeout)
    if meeting.is_alive():
        raise InputError(
            f"not all processes met at {where} within {timeout} s; "
            "start all of them with the same address, and see that its port is open"
        )
    for error in failures:
        if isinstance(error, jax.errors.JaxRuntimeError):
            reason = str(error).splitlines()[0]
            raise InputError(f"the processes did not meet at {where}: {reason}") from error
        if not isinstance(error, ValueError):
            raise error
        raise InputError(
            "no cluster was found here: give --coordinator, --num-processes and --process-id"
        ) from error


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--coordinator is {coordinator!r}; give host:port")
    return host, int(port)


def _check_free(port: int) -> None:
    """JAX itself would crash where another program listens already."""
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise InputError(
            f"port {port} of this host cannot be listened to ({error.strerror}); "
            "give all processes a --coordinator with another"
        ) from error


def _knock(address: tuple[str, int], timeout: int) -> None:
    """Wait until the coordinator listens. JAX itself would end the process if it never did."""
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise InputError(
                    f"no coordinator at {address[0]}:{address[1]} within {timeout} s ({error}); "
                    "is process 0 running there, and its port open?"
                ) from error
            time.sleep(0.2)


def part() -> None:
    """Wait until all hosts have come here; alone it does nothing.

    A host that ended while others work would end them too, minutes later.
    """
    wait = ocp.multihost.get_barrier_sync_fn()
    wait(key="ic-jax: all is done", timeout_ms=1000 * _LONG)


def mine(clips: Iterable[str]) -> list[str]:
    """The share of this host among the clips with these identities, which all hosts are told.

    Every host writes what it makes of its own; the order in which they are named is no matter.
    """
    return sorted(set(clips))[jax.process_index() :: jax.process_count()]
