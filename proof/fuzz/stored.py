"""The target `stored`: the store's decoder of operations, with changed bytes.

Layer: fuzz.

No peer sends such input, but a failing disk can produce it. An input is the bytes of an operation (see
`mutate.to_bytes`). Either `msgspec` refuses it, or the decoded operation survives encoding and decoding.
"""

from __future__ import annotations

from random import Random

import msgspec

from proof.fuzz import mutate
from proof.fuzz.engine import Finding
from proof.fuzz.mutate import Json, to_bytes
from proof.fuzz.requests import PARTS
from tenuto.core.names import command_key
from tenuto.core.ops import (
    Append,
    Claim,
    Command,
    Create,
    Delete,
    Finish,
    Lease,
    Op,
    Reply,
    SetPart,
    Takeover,
    Update,
    WriterIdentity,
    decode_op,
    encode_op,
)

OPS: list[Op] = [
    Create(id="m1", role="user", author="ada", status="streaming", parts=PARTS, meta={"k": [1, None, "é"]}, parent=None,
           reply_to="m0", at_ms=1, digest=b"\x00" * 16, writer=WriterIdentity(by="ada", node="n", lease_ms=15_000)),
    Append(id="m1", part=0, at=3, text="häß😀"),
    SetPart(id="m1", index=1, part=PARTS[2], at_ms=2, request="r"),
    Update(id="m1", parts=None, meta={}, at_ms=3),
    Finish(id="m1", status="complete", reason=None, meta={"n": 2**53}, at_ms=4, request="r"),
    Takeover(id="m1", generation=2, writer=WriterIdentity()),
    Delete(id="m1"),
    Claim(id="m1", generation=2, state="taken", by="bot", node="n", lease_ms=15_000, at_ms=5, within="m0",
          within_generation=1),
    Claim(id="m1", generation=1, state="done"),
    Command(id=command_key("k1"), name="steer", target="m1", data={"to": [1, None]}, by="ada", at_ms=6, expires_ms=7,
            digest=b"\x01" * 16),
    Reply(id=command_key("k1"), ok=False, data=None, error={"code": "no"}, by=None, request="r"),
    Lease(id="m1", lease_ms=5_000),
]  # fmt: skip


class Stored:
    """Decodes bytes as a store does."""

    name = "stored"
    cpu_s = 1.0
    is_guided = True

    def seeds(self) -> list[Json]:
        """Return every operation."""
        return [encode_op(op).decode("latin-1") for op in OPS]

    def generate(self, draw: Random) -> Json:
        """Return random bytes."""
        return draw.randbytes(draw.randint(0, 40)).decode("latin-1")

    def change(self, draw: Random, old: Json, other: Json) -> Json:
        """Change a few bytes."""
        text = old if isinstance(old, str) else ""
        return to_bytes(mutate.text(draw, text, [other if isinstance(other, str) else ""])).decode("latin-1")

    def run(self, given: Json) -> None:
        """Decode the bytes and encode the operation again. Raises Finding."""
        data = to_bytes(given)
        try:
            op = decode_op(data)
        except msgspec.DecodeError:
            return
        except Exception as error:
            raise Finding(f"raised {type(error).__name__}: {error!r} from an operation's bytes") from error
        try:
            again = encode_op(op)
        except Exception as error:
            raise Finding(f"raised {type(error).__name__}: {error!r} from {op}") from error
        if encode_op(decode_op(again)) != again:
            raise Finding(f"not the same after encoding and decoding: {op}")

    def close(self) -> None:
        """No-op: the target holds no resource."""
