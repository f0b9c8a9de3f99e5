"""Worlds that are directed at one mutant: their features are given and not drawn.

Layer: tests.

A directed world starts plain: one hub, one channel, one writer, one viewer and no fault. It gets only the features that
let its mutant do harm. Most seeds show the mutant then, so a change of the hub that moves the draws does not hide it.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from proof.simulation.faults import FaultModel
from proof.simulation.plan import SIZES, Plan
from proof.simulation.viewers import SocketViewer
from proof.simulation.writers import HttpWriter
from tenuto.core.limits import Limits

Mutant = Callable[[pytest.MonkeyPatch], None]


class Finding(NamedTuple):
    """How a mutant is found."""

    violation: str
    features: dict[str, Any]


MUTANTS: dict[Mutant, Finding] = {}


def mutant(violation: str, /, **features: Any) -> Callable[[Mutant], Mutant]:
    """Register a mutant with the violation that finds it; no other violation counts.

    Without the `features` of its world it can do no harm, or only rarely.
    """

    def register(function: Mutant) -> Mutant:
        MUTANTS[function] = Finding(violation, features)
        return function

    return register


def edit(patch: pytest.MonkeyPatch, owner: Any, name: str, changes: dict[str, str]) -> None:
    """Change the source of a function or method of `owner`: each key of `changes`, which stands there once."""
    function = inspect.unwrap(getattr(owner, name))
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes.items():
        assert source.count(old) == 1, f"{old!r} does not stand once in {name}: correct the mutant"
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(source, function.__globals__, made)
    patch.setattr(owner, name, made[name])


def directed(seed: int, features: dict[str, Any]) -> Plan:
    """Return a plain plan with `features`: fields of `Plan`, `FaultModel` and `Limits`, and names of `SIZES`."""
    rest = dict(features)

    def take(names: Any) -> dict[str, Any]:
        return {name: rest.pop(name) for name in names if name in rest and name not in Plan.__dataclass_fields__}

    faults, limits = take(FaultModel.__dataclass_fields__), take(Limits.__dataclass_fields__)
    sizes = [rest.pop(name, values[-1]) for _, name, values in SIZES]
    plain = Plan(
        seed=seed,
        hubs=1,
        is_weak=False,
        channels=1,
        bad_s=8.0,
        token_s=0.02,
        authors=[HttpWriter],
        viewers=[SocketViewer],
        readers=0,
        edits=["say"],
        faults=[],
        fault_s=1.0,
        adopts=False,
        by_hand=False,
        flush_ms=40,
        limits=Limits(**{"channel_idle_s": 2.0, **limits}),
        fault_model=FaultModel(**faults),
        sizes=sizes,
    )
    return replace(plain, **rest)
