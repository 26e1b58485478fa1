"""One thread beside the devices: what it reads ahead, in which order it works, how it stops."""

import os
import signal
from threading import Event, Timer

import pytest

from ic_jax.cli.clerk import clerk

SECONDS = 60
MOST = 3


def test_items_are_read_ahead_and_no_further():
    read, beginning = [], Event()

    def slow(item):
        assert beginning.wait(SECONDS)
        read.append(item)
        return 10 * item

    with clerk(MOST) as at_work:
        items = at_work.ahead(slow, range(9), 2)
        first, result = next(items)
        assert (first, read) == (0, [])  # nobody has waited for it
        beginning.set()
        assert result() == 0
        at_work.later(lambda: None)
        at_work.finish()
        assert read == [0, 1, 2]
        assert [(item, result()) for item, result in items] == [(n, 10 * n) for n in range(1, 9)]
    assert read == list(range(9))


def test_a_file_that_cannot_be_read_is_told_in_its_turn():
    def read(item):
        if item == 1:
            raise OSError("damaged")
        return item

    with clerk(MOST) as at_work:
        (_, zero), (_, one), (_, two) = at_work.ahead(read, range(3), 3)
        assert (zero(), two()) == (0, 2)
        with pytest.raises(OSError, match="damaged"):
            one()


def test_tasks_are_done_beside_the_caller_one_after_another():
    done, may = [], Event()

    def write(name):
        assert may.wait(SECONDS)
        done.append(name)

    with clerk(MOST) as at_work:
        for name in "abc":
            at_work.later(write, name)
        assert done == []
        may.set()
    assert done == ["a", "b", "c"]


def test_whoever_asks_for_more_than_there_is_room_for_waits():
    done, may = [], Event()

    def write(name):
        assert may.wait(SECONDS)
        done.append(name)

    with clerk(2) as at_work:
        at_work.later(write, "a")
        at_work.later(write, "b")
        assert done == []
        Timer(0.2, may.set).start()
        at_work.later(write, "c")
        assert done[0] == "a"


def test_an_unforeseen_error_ends_the_batch():
    def fail():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        with clerk(MOST) as at_work:
            at_work.later(fail)
            at_work.finish()


def test_what_has_begun_is_ended_on_ctrl_c_and_nothing_else_is_begun():
    done, begun, dropped = [], Event(), Event()

    def write(name):
        begun.set()
        assert dropped.wait(SECONDS)
        done.append(name)

    with pytest.raises(KeyboardInterrupt):
        with clerk(MOST) as at_work:
            at_work.later(write, "first")
            at_work.later(write, "second")
            at_work._asked[1].add_done_callback(lambda task: dropped.set())
            assert begun.wait(SECONDS)
            raise KeyboardInterrupt
    assert done == ["first"]


@pytest.fixture
def interruptible():
    """Whoever runs in the background of a script inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_does_not_cut_off_what_has_begun():
    done, begun, may = [], Event(), Event()

    def write(name):
        begun.set()
        assert may.wait(SECONDS)
        done.append(name)

    with pytest.raises(KeyboardInterrupt):
        with clerk(MOST) as at_work:
            at_work.later(write, "first")
            assert begun.wait(SECONDS)
            Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            raise KeyboardInterrupt
    # The interpreter waits at its end for threads that it knows to be alive.
    (worker,) = at_work._thread._threads
    assert worker.is_alive() and done == []
    may.set()
    worker.join()
    assert done == ["first"]
