"""SIGTERM and Ctrl-C: finish the step, save, and leave; never hang on a long step or compilation."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 8.0  # clusters commonly kill 10 to 30 s after SIGTERM
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Raised inside `interruptible` code when the process is asked to stop."""


class StopRequest:
    """While entered, turns SIGTERM and SIGINT into `requested`; a second one ends the process at once.

    Python runs signal handlers between bytecodes only, and a compilation can hold the main thread for a minute. So a
    watching thread is told through a socket, and after `GRACE_SECONDS` without a word from the main thread it ends
    the process: the last checkpoint stands.
    """

    def __init__(self, message: str, alone: bool = True):
        self.message = message  # how to resume; printed if the process is ended from the watching thread
        self.requested = False  # of this process
        self.agreed = False  # between all processes of the run: each may leave at the same place only
        self._alone = alone
        self._raise = False
        self._handled = threading.Event()
        self._active = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopRequest":
        if self._active:
            self._inlet, outlet = socket.socketpair()
            outlet.setblocking(False)
            self._outlet = outlet
            self._wakeup = signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
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
        if self.agreed:
            raise Interrupted
        self._raise = self._alone
        try:
            yield
        finally:
            self._raise = False

    def acknowledge(self) -> None:
        """The main thread has taken over: it saves now, however long that takes."""
        self._handled.set()

    def acknowledge_if_agreed(self) -> None:
        if self.agreed:
            self.acknowledge()

    def _on_signal(self, number, frame) -> None:
        self.requested = True
        self.agreed |= self._alone
        if self._raise:
            raise Interrupted

    def _watch(self) -> None:
        with self._inlet as inlet:
            if not _signal_arrives(inlet, None):
                return
            if _signal_arrives(inlet, GRACE_SECONDS):
                self._leave("Stopped at once", 1)
            if self._handled.is_set():
                if _signal_arrives(inlet, None):
                    self._leave("Stopped at once", 1)
                return
            self._leave("Stopped in the middle of a long step or compilation, which is abandoned", 0)

    def _leave(self, how: str, status: int) -> None:
        os.write(2, f"\n{how}. {self.message}\n".encode())
        os._exit(status)


def _signal_arrives(inlet: socket.socket, seconds: float | None) -> bool:
    """Whether SIGTERM or SIGINT comes within that time, before the socket is closed."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        inlet.settimeout(None if end is None else max(end - time.monotonic(), 1e-3))
        try:
            received = inlet.recv(1)
        except TimeoutError:
            return False
        if not received:
            return False
        if received[0] in _SIGNALS:
            return True
