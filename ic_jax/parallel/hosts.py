"""Several hosts: finding each other, and which of the clips are whose."""

import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from threading import Thread
from typing import Any

import jax
import orbax.checkpoint as ocp

from ic_jax.errors import InputError

_DAY = 24 * 3600
# Seconds: hosts may have clips of very different lengths.
_LONG = 30 * _DAY
_NAME = re.compile(r"[\w-]{1,63}(\.[\w-]{1,63})*", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}")


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

    What JAX itself finds wrong when they meet, such as two processes of one number, it ends
    this process for. One that is told to stop ends when all are; alone it waits for the others,
    whom JAX would end with it, for up to 5 minutes.

    Raises:
        InputError: no such cluster, an address or number that cannot be, or not all processes
            there in time: `timeout` seconds (1 to 86400) each until the coordinator listens, and
            until all have met.
    """
    if not 1 <= timeout <= _DAY:
        raise InputError(f"--join-timeout is {timeout}; give seconds from 1 to {_DAY}")
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
        host, port = _address(coordinator)
        if process == 0:
            _check_free(port)
            _wait_for(coordinator, lambda: socket.getaddrinfo(host, port), timeout)
        else:
            knock = lambda: socket.create_connection((host, port), timeout=1).close()
            _wait_for(coordinator, knock, timeout)
    _meet(given, timeout)


def _devices() -> list[int] | None:
    """What JAX is told of the devices that are this process's: an empty list for all there are.

    It takes any task of SLURM's for one of many on its host, and would give it a single GPU.
    """
    tasks, hosts = map(os.environ.get, ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"))
    alone = tasks is not None and tasks == hosts
    return [] if alone and "JAX_LOCAL_DEVICE_IDS" not in os.environ else None


def _meet(given: tuple[str | None, int | None, int | None], timeout: int) -> None:
    failures: list[Exception] = []
    # Its service would take SIGTERM for itself, and go on as if none had come.
    jax.config.update("jax_enable_preemption_service", False)

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                *given, local_device_ids=_devices(), initialization_timeout=2 * timeout + 60
            )
        except Exception as error:
            failures.append(error)

    # When its own time is up JAX ends the process, with a stack trace; ours is up before.
    where = given[0] or "the coordinator"
    meeting = Thread(target=initialize, daemon=True)
    meeting.start()
    meeting.join(timeout)
    if meeting.is_alive():
        raise InputError(
            f"not all processes met at {where} within {timeout} s; start all of them with the "
            "same address, and see that its port is open"
        )
    for error in failures:
        # Of any kind: every cluster that JAX knows is asked in a way of its own.
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if given[0] is not None or isinstance(error, jax.errors.JaxRuntimeError):
            raise InputError(f"the processes did not meet at {where}: {reason}") from error
        raise InputError(
            f"no cluster was found here ({reason}); "
            "give --coordinator, --num-processes and --process-id"
        ) from error


def _address(coordinator: str) -> tuple[str, int]:
    """Host and port. An IPv6 address has brackets, which tell its colons from the port's."""
    host, _, port = coordinator.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    fits = _NAME.fullmatch(host) or (host == f"[{bare}]" and _is_ipv6(bare))
    if not fits or not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise InputError(
            f"--coordinator is {coordinator!r}; give host:port or [IPv6 address]:port, "
            "with a port from 1 to 65535"
        )
    return bare, int(port)


def _is_ipv6(address: str) -> bool:
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return True


def _check_free(port: int) -> None:
    """JAX itself would crash where another program listens already."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise InputError(
            f"port {port} of this host cannot be listened to ({error.strerror}); "
            "give all processes a --coordinator with another"
        ) from error


def _wait_for(coordinator: str, attempt: Callable[[], Any], timeout: int) -> None:
    """Attempt until it succeeds. JAX itself would end the process if it never did."""
    until = time.monotonic() + timeout
    while True:
        try:
            attempt()
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise _absent(coordinator, error, timeout) from error
            time.sleep(0.2)


def _absent(coordinator: str, error: OSError, timeout: int) -> InputError:
    reason = error.strerror or error
    if isinstance(error, socket.gaierror):
        return InputError(
            f"--coordinator is {coordinator!r}, and no such host was known within {timeout} s "
            f"({reason}); give the name or address of the host where process 0 runs"
        )
    return InputError(
        f"no coordinator at {coordinator} within {timeout} s ({reason}); "
        "is process 0 running there, and its port open?"
    )


def barrier() -> None:
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
