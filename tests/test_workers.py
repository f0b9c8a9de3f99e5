"""The parent of `holdfast serve --workers N`: which workers it starts, and when. The workers run other programs."""

from __future__ import annotations

import signal
import subprocess

import pytest

from holdfast.core.errors import LocalError
from holdfast.workers import FAILED_S, Supervisor

SERVES, FAILS = ["cat"], ["false"]  # programs of workers; the first one runs until it gets a signal


class Scripted(Supervisor):
    """A parent whose time passes in its pauses only. Its workers fail after the first one has died."""

    def __init__(self, count: int, command: list[str]) -> None:
        super().__init__(count, 0, command)
        self.time_s = 0.0
        self.pauses: list[float] = []
        self.kept: subprocess.Popen[bytes] | None = None
        self.has_ended_one = False

    def now_s(self) -> float:
        return self.time_s

    def wait(self, timeout_s: float | None) -> None:
        if timeout_s is not None:
            self.pauses.append(timeout_s)
            self.time_s += timeout_s
            if len(self.pauses) == 7:
                self.command = SERVES
            return
        if self.command == SERVES:
            self._next_step()
        super().wait(None)

    def _next_step(self) -> None:
        running = [worker for worker, _ in self._workers]
        if self.kept is None:  # all workers have served for some time, then one dies
            self.time_s += FAILED_S
            self.command, self.kept = FAILS, running[-1]
            running[0].kill()
        elif not self.has_ended_one:  # a worker has ended and was taken from the system when the signal arrives
            self.has_ended_one = True
            assert self.kept.poll() is None
            assert len(running) == 2
            running[-1].kill()
            running[-1].wait()
            signal.raise_signal(signal.SIGTERM)


def test_failed_replacements_leave_the_other_workers_running_and_are_tried_again_with_growing_pauses(
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    parent = Scripted(2, SERVES)
    assert parent.run() == signal.SIGTERM
    assert parent.pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert parent.kept is not None
    assert parent.kept.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "ended with 1; another one starts in 16 s" in capfd.readouterr().err


def test_parent_gives_up_if_its_first_workers_fail() -> None:
    parent = Scripted(2, FAILS)
    with pytest.raises(LocalError, match="three of them ended within seconds"):
        parent.run()
    assert parent.pauses == []
