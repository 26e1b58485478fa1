"""What compiling frees goes back to the system."""

import ctypes
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ic_jax.heap import hand_back_after_compiling


@pytest.fixture
def listeners(monkeypatch):
    """What a test has JAX tell, until it is over, in a process that nothing was asked of yet."""
    added, register = [], jax.monitoring.register_event_duration_secs_listener

    def noted(listener):
        added.append(listener)
        register(listener)

    monkeypatch.setattr(jax.monitoring, register.__name__, noted)
    hand_back_after_compiling.cache_clear()
    yield added
    hand_back_after_compiling.cache_clear()
    for listener in added:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_the_heap_is_trimmed_when_a_program_was_compiled_and_not_when_it_runs(
    listeners, monkeypatch
):
    trimmed = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=trimmed.append))
    for _ in range(2):
        hand_back_after_compiling()
    program = jax.jit(lambda x: x * 3)
    assert len(listeners) == 1 and not trimmed
    program(np.arange(11)).block_until_ready()
    compiled = len(trimmed)
    assert compiled and set(trimmed) == {0}
    program(np.arange(11)).block_until_ready()
    assert len(trimmed) == compiled


def test_a_c_library_that_cannot_is_let_be(listeners, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    hand_back_after_compiling()
    assert not listeners
