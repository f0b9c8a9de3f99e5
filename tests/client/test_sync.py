"""The blocking client: a script's view of a real server.

Layer: tests.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tenuto.client import SyncClient
from tenuto.core.errors import LocalError, NotFound
from tenuto.core.events import ChannelAttached, MessageCreate, MessageUpdate
from tests.processes import Server, serving, text_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("serve", tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[SyncClient]:
    with SyncClient(f"http://127.0.0.1:{server.port}", client_id="script") as client:
        yield client


def test_a_script_writes_and_reads(server: Server, client: SyncClient) -> None:
    asked = client.create("chat:1", text="Why?")
    with client.message("chat:1", reply_to=asked.id) as message:
        message.append("Be")
        message.append("cause.")
        message.flush()
        assert message.length == 8
        message.update(meta={"n": 1})
        assert message.part({"type": "data", "name": "d", "data": 1}) == 1
    assert text_of(server.message("chat:1", message.id)) == "Because."
    assert client.read("chat:1", message.id)[0].meta == message.meta == {"n": 1}
    assert [one.text for one in client.history("chat:1").messages] == ["Because.", "Why?"]
    assert client.update("chat:1", asked.id, text="How?").text == "How?"
    client.delete("chat:1", asked.id)
    with pytest.raises(NotFound):
        client.read("chat:1", "other")


def test_loop_over_a_subscription_gets_the_events(client: SyncClient) -> None:
    seen = ""
    for number, event in enumerate(client.subscribe("chat:2")):
        if number == 0:
            assert isinstance(event, ChannelAttached)
            client.create("chat:2", text="later")
        elif isinstance(event, MessageCreate | MessageUpdate):
            seen = event.message.text
            break
    assert seen == "later"


def test_people_and_commands(client: SyncClient) -> None:
    with client.presence("chat:5", {"name": "Script"}) as here:
        here.update({"name": "Other"})
        assert [(one.id, one.data) for one in client.members("chat:5")] == [("script", {"name": "Other"})]
        client.signal("chat:5", "typing")
    command = client.command("chat:5", "approve")
    client.reply("chat:5", command.id, data={"yes": True})


def test_closed_client_raises(server: Server) -> None:
    client = SyncClient(f"http://127.0.0.1:{server.port}")
    with pytest.raises(LocalError):
        client.create("c", text="too early")
    client.start()
    watching, kept = iter(client.subscribe("c")), iter(client.subscribe("c"))
    assert all(map(next, (watching, kept)))
    client.close()
    client.close()
    with pytest.raises(LocalError):
        next(watching)
    kept.close()  # type: ignore[attr-defined]  # as the garbage collector does; Python prints what that raises


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_is_refused(client: SyncClient) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        try:
            with pytest.raises(LocalError, match="in this process"):
                client.create("c", text="child")
            client.close()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.create("c", text="parent")
