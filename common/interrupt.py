"""SIGTERM and Ctrl-C: finish the step, save, and leave; never hang on a long step or compilation."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 8.0  # clusters commonly kill 10 to 30 s after SIGTERM


class Interrupted(Exception):
    """Raised inside `interruptible` code when the process is asked to stop."""


class StopRequest:
    """While entered, turns SIGTERM and SIGINT into `requested`; a second one ends the process at once.

    Python runs signal handlers between bytecodes only, and a compilation can hold the main thread for a minute. So a
    watching thread is told through a socket, and after `GRACE_SECONDS` without a word from the main thread it ends
    the process: the last checkpoint stands.
    """

    def __init__(self, message: str):
        self.message = message  # how to resume; printed if the process is ended from the watching thread
        self.requested = False
        self._raise = False
        self._handled = threading.Event()
        self._active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopRequest":
        if self._active:
            self._inlet, outlet = socket.socketpair()
            outlet.setblocking(False)
            self._outlet = outlet
            self._wakeup = signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
            self._handlers = {
                number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
            }
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        if self._active:
            self._handled.set()
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._outlet.close()  # ends the watching thread

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Code that may be left at any point by `Interrupted`, because the state before it is intact."""
        if self.requested:
            raise Interrupted
        self._raise = True
        try:
            yield
        finally:
            self._raise = False

    def acknowledge(self) -> None:
        """The main thread has taken over: it saves now, however long that takes."""
        self._handled.set()

    def acknowledge_if_requested(self) -> None:
        if self.requested:
            self.acknowledge()

    def _on_signal(self, number, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._raise:
            raise Interrupted

    def _watch(self) -> None:
        with self._inlet:
            received = self._inlet.recv(1)
            if not received or self._handled.wait(GRACE_SECONDS):
                return
        sys.stderr.write(f"\nStopped in the middle of a long step or compilation, which is abandoned. {self.message}\n")
        sys.stderr.flush()
        os._exit(0)
