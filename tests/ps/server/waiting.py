"""A call in a thread that waits for a condition, for tests of waits without a sleep."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

DEADLINE = 20.0


class Waiting:
    """``call`` in a thread of its own, which waits for ``condition`` when this is made."""

    def __init__(self, condition: threading.Condition, call: Callable[[], Any]) -> None:
        self._result: Future[Any] = Future()
        entered = threading.Event()
        wait_for = condition.wait_for

        def watched(ready: Callable[[], bool], timeout: float | None = None) -> bool:
            condition.wait_for = wait_for  # type: ignore[method-assign]
            assert not ready()
            entered.set()  # the lock is held until it waits
            return wait_for(ready, timeout)

        def run() -> None:
            try:
                self._result.set_result(call())
            except BaseException as error:
                self._result.set_exception(error)

        condition.wait_for = watched  # type: ignore[method-assign]
        self._thread = threading.Thread(target=run, name="terrace-waiting")
        self._thread.start()
        assert entered.wait(DEADLINE)

    def result(self) -> Any:
        """What the call returned or raised, soon: somebody has to wake it, not its deadline."""
        self._thread.join(DEADLINE / 2)
        assert not self._thread.is_alive(), "nobody woke it"
        return self._result.result()
