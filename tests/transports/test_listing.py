"""`GET /v1/channels` shows the channels on which the caller has `history` or `admin`."""

import httpx2

from tenuto.app import Hub
from tenuto.hub.access.identity import CAPABILITIES, Identity
from tests.transports.conftest import asking


async def test_list_of_channels_is_paged(hub: Hub, http: httpx2.AsyncClient) -> None:
    for name in ("a", "b:1", "b:2"):
        await hub.create(name, text="x")
    response = await http.get("/v1/channels", params={"prefix": "b:", "limit": 1})
    assert response.status_code == 200
    found = response.json()
    assert found["more"] is True
    (channel,) = found["channels"]
    assert set(channel) == {"channel", "created_ms", "updated_ms", "messages", "size_bytes"}
    assert (channel["channel"], channel["messages"]) == ("b:1", 1)
    rest = (await http.get("/v1/channels?prefix=b:&after=b:1")).json()
    assert ([one["channel"] for one in rest["channels"]], rest["more"]) == (["b:2"], False)


async def test_wrong_queries_of_a_list_are_refused(plain_http: httpx2.AsyncClient) -> None:
    for query, code in (("prefix=b*", "invalid_name"), ("after=%0a", "invalid_name"), ("limit=501", "invalid_request")):
        response = await plain_http.get(f"/v1/channels?{query}")
        assert (response.status_code, response.json()["code"]) == (400, code)


async def test_list_shows_channels_with_history_or_admin_only() -> None:
    grants = {"chat:*": {"history"}, "log:1": {"admin"}, "secret:*": CAPABILITIES - {"history", "admin"}}

    async def authenticate(scope: object) -> Identity:
        return Identity(client_id="ada", grants={name: frozenset(one) for name, one in grants.items()})

    hub = Hub("memory://", hooks_signals=False, authenticate=authenticate)
    for name in ("chat:1", "log:1", "log:2", "secret:1"):
        await hub.create(name, text="x")
    async with asking(hub) as client:
        found = (await client.get("/v1/channels")).json()
        assert [one["channel"] for one in found["channels"]] == ["chat:1", "log:1"]
        assert (await client.get("/v1/channels?prefix=secret:")).json() == {"channels": [], "more": False}
        del grants["chat:*"]  # `admin` alone shows its channel
        assert [one["channel"] for one in (await client.get("/v1/channels")).json()["channels"]] == ["log:1"]
        del grants["log:1"]
        refused = await client.get("/v1/channels")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    await hub.close()
