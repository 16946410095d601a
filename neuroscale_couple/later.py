"""What can wait until the run waits for another program: it is done then, in a thread, and holds up neither of them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

Action = Callable[[], None]
PAUSE = 5e-4
"""Seconds that the other program gets to have what it waits for, before it shares its cores with us."""


class Later:
    """Actions in the order in which they were put. Usable from one thread."""

    def __init__(self) -> None:
        self._open = False
        self._held: list[Action] = []
        self._handed: queue.Queue[list[Action]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def put(self, action: Action) -> None:
        """Do this when the run waits next, or now if nobody has ever said that it waits (`go`).

        Raises: what an earlier action has raised
        """
        self._raise()
        if self._open:
            self._held.append(action)
        else:
            action()

    def go(self) -> None:
        """The run waits from now on, in a call that lets other threads of Python run."""
        self._open = True
        if not self._held:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="later", daemon=True)
            self._thread.start()
        held, self._held = self._held, []
        self._handed.put(held)

    def settle(self) -> None:
        """Everything that was put is done when this returns. Raises: what an action has raised"""
        self._handed.join()
        held, self._held = self._held, []
        for action in held:
            action()
        self._raise()

    def close(self) -> None:
        """The run has ended: settle, and do at once what is put from now on. Raises: what an action has raised"""
        self._open = False
        self.settle()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while True:
            actions = self._handed.get()
            time.sleep(PAUSE)
            try:
                for action in actions:
                    action()
            except BaseException as error:
                self._error = self._error or error
            finally:
                self._handed.task_done()


later = Later()
"""Of this process."""
