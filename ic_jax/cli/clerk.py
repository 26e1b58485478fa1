"""One thread beside the devices: it reads what comes next, and writes what has come of it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Clerk:
    """Does one thing after another, so that all it says comes in the order it was asked in."""

    def __init__(self, thread: ThreadPoolExecutor, most: int) -> None:
        self._thread = thread
        self._most = most
        self._asked: deque[Future] = deque()

    def ahead(
        self, read: Callable[[T], R], items: Iterable[T], count: int
    ) -> Iterator[tuple[T, Callable[[], R]]]:
        """Each item, and what returns what was read of it, or raises what reading it did.

        So many items are read ahead of the one at hand, and no more: memory has to hold them.
        """
        items = iter(items)
        started = lambda some: [(item, self._thread.submit(read, item)) for item in some]
        reading = deque(started(islice(items, count)))
        while reading:
            item, future = reading.popleft()
            reading.extend(started(islice(items, 1)))
            yield item, future.result

    def later(self, task: Callable[..., None], *given: Any) -> None:
        """Has a task done after all that was asked before, once there is room for it.

        Raises what an earlier task raised.
        """
        while self._asked and (self._asked[0].done() or len(self._asked) >= self._most):
            self._end_first()
        self._asked.append(self._thread.submit(task, *given))

    def finish(self) -> None:
        """Waits until all tasks are done. Raises what one of them raised."""
        while self._asked:
            self._end_first()

    def leave(self) -> None:
        """Ends the task at hand, and drops those that it has not begun."""
        # Not by joining the thread: whoever is interrupted there takes it for dead, and the
        # interpreter would end in the middle of a task.
        self._thread.shutdown(wait=False, cancel_futures=True)
        for task in self._asked:
            with suppress(CancelledError):
                task.exception()

    def _end_first(self) -> None:
        self._asked[0].result()
        self._asked.popleft()


@contextmanager
def clerk(most: int) -> Iterator[Clerk]:
    """Yields a clerk, who has finished when the block ends well.

    It has `most` tasks at a time to do later: memory has to hold what they are given.
    On any error, or Ctrl-C, it ends the task at hand, whose output is whole then, and drops
    those that it has not begun.
    """
    at_work = Clerk(ThreadPoolExecutor(1), most)
    try:
        yield at_work
        at_work.finish()
    finally:
        at_work.leave()
