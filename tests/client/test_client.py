"""The results and the errors of plain calls, against a real hub.

Layer: tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from tenuto.client import Client
from tenuto.core.errors import Deleted, TenutoError, VersionConflict
from tests.client.wire import Wire, client_of


async def test_a_message_is_changed_and_deleted(client: Client) -> None:
    made = await client.create("c", parts=[{"type": "text", "text": "Hi"}], meta={"a": 1, "b": 2})
    changed = await client.update("c", made.id, text="Ho", meta={"a": None}, if_version=made.version)
    assert (changed.text, changed.meta) == ("Ho", {"b": 2})
    with pytest.raises(VersionConflict) as conflict:
        await client.update("c", made.id, text="He", if_version=made.version)
    assert conflict.value.details == {"version": changed.version}
    await client.delete("c", made.id)
    await client.delete("c", made.id)
    with pytest.raises(Deleted):
        await client.read("c", made.id)


async def test_response_of_a_wrong_form_names_the_field() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"message": 5, "cursor": ""}'})

    async with client_of(Wire(app)) as client:
        with pytest.raises(TenutoError, match=r"`int`.*\$\.message"):
            await client.read("c", "m")
