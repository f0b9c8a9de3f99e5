"""Code coverage of an input: pairs of lines that follow each other, in the files that handle a peer's input.

Layer: fuzz.

`sys.settrace` makes a run about ten times slower, so only a share of runs is traced. In return it is part of Python, in
every supported version.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import tenuto

# Folders and files of the package: those that handle a peer's input, and the identity code.
WATCHED = (
    "core/",
    "transports/",
    "hub/access/identity.py",
    "hub/people/presence.py",
    "hub/access/tickets.py",
    "hub/access/tokens.py",
)
_ROOT = Path(tenuto.__file__).parent
_BELOW = f"{_ROOT}/"
_ELSEWHERE = -1
_LINE_BITS = 12


class Coverage:
    """All coverage so far. `watching` returns the pairs that one run added."""

    def __init__(self) -> None:
        self.pairs: set[int] = set()
        self._codes: dict[CodeType, int] = {}
        self._files: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[set[int]]:
        """Trace the block. The yielded set holds its new pairs once the block has ended."""
        reached: set[int] = set()
        new: set[int] = set()
        before = sys.gettrace()
        sys.settrace(self._tracer(reached))
        try:
            yield new
        finally:
            sys.settrace(before)
            new |= reached - self.pairs
            self.pairs |= new

    def _tracer(self, reached: set[int]) -> Any:  # `Any`, because `sys.settrace` expects this signature
        codes, number_of = self._codes, self._number_of

        def called(frame: FrameType, event: str, argument: Any) -> Any:
            code = frame.f_code
            number = codes.get(code)
            if number is None:
                number = codes[code] = number_of(code)
            if number == _ELSEWHERE:
                return None
            base = number << (2 * _LINE_BITS)
            before = 0

            def stepped(frame: FrameType, event: str, argument: Any) -> Any:
                nonlocal before
                if event == "line":
                    line = frame.f_lineno
                    reached.add(base | before << _LINE_BITS | line)
                    before = line
                return stepped

            return stepped

        return called

    def _number_of(self, code: CodeType) -> int:
        path = code.co_filename
        if not path.startswith(_BELOW) or not path.removeprefix(_BELOW).startswith(WATCHED):
            return _ELSEWHERE
        return self._files.setdefault(path, len(self._files))
