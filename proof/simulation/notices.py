"""Notices between the hubs of a shared store: they are lost, doubled, late and out of order.

Layer: simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from proof.simulation.clock import Process, VirtualLoop
from proof.simulation.faults import FaultModel
from tenuto.stores.base import Notice

OnNotice = Callable[[Notice | None], None]


class Notices:
    """The channel of notices of one store."""

    def __init__(self, loop: VirtualLoop, fault_model: FaultModel, draw: Random) -> None:
        self._loop = loop
        self._fault_model = fault_model
        self._draw = draw
        self._listeners: dict[Process, OnNotice] = {}

    def listen(self, process: Process, on_notice: OnNotice) -> None:
        """Deliver notices to `process` from now on."""
        self._listeners[process] = on_notice
        self._deliver(process, None)

    def send(self, sender: Process, notices: Sequence[Notice]) -> None:
        """Deliver `notices` to the other processes, some of them not at all or twice."""
        for notice in notices:
            for process in self._listeners:
                if process is not sender and self._draw.random() >= self._fault_model.notice_loss:
                    for _ in range(1 + (self._draw.random() < self._fault_model.notice_repeat)):
                        self._deliver(process, notice)

    def interrupt(self) -> None:
        """Let every process know that it may have missed notices, as after the restart of a server."""
        for process in self._listeners:
            self._deliver(process, None)

    def _deliver(self, process: Process, notice: Notice | None) -> None:
        if process.is_alive:
            delay_s = self._draw.uniform(*self._fault_model.notice_s)
            call = partial(self._listeners[process], notice)
            self._loop.call_at(self._loop.time() + delay_s, call, context=process.context.copy())
