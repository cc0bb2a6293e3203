"""Work that goes on in other threads while a test does something."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def running(*works: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Repeat every work in a thread of its own until the block ends; then raise what they raised."""
    stop, errors = threading.Event(), []

    def repeat(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
