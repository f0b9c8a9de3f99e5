"""Bad input over HTTP gets a clear error with a stable code, stores no entry, and leaves a healthy server."""

from __future__ import annotations

import json

import httpx2
import pytest

from tests.transports.test_http import M1, MESSAGES, create, refused

JSON = {"content-type": "application/json"}

BODIES = [
    (b"", "invalid_request"),
    (b'{"text": "a"} {}', "invalid_request"),
    (b"[]", "invalid_request"),
    (b"[" * 100_000, "invalid_request"),
    (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_request"),
    (b'{"meta": {"m": [%b]}}' % b",".join([b"[]"] * 100_001), "invalid_request"),
    (b'{"role": "king"}', "invalid_request"),
    (b'{"status": "done"}', "invalid_request"),
    (b'{"meta": {"n": NaN}}', "invalid_request"),
    (b'{"meta": {"n": 9223372036854775808}}', "invalid_request"),
    (b'{"lease_s": 1}', "invalid_request"),
    (b'{"text": "a\x00b"}', "invalid_request"),
    (b"\xef\xbb\xbf{}", "invalid_request"),
    (b'{"text": "\\ud800"}', "invalid_text"),
    (b'{"text": "half \\ud83d', "invalid_request"),  # broken besides
    (b'{"text": "\xff"}', "invalid_text"),
    (json.dumps({"meta": {"m": "x" * 17_000}}).encode(), "too_large"),
]


@pytest.mark.parametrize(("body", "code"), BODIES, ids=[repr(body[:40]) for body, _ in BODIES])
async def test_invalid_message_bodies_are_refused(plain_http: httpx2.AsyncClient, body: bytes, code: str) -> None:
    response = await plain_http.post(MESSAGES, content=body, headers=JSON)
    assert refused(response) == (413 if code == "too_large" else 400, code)
    assert (await plain_http.get(MESSAGES)).json()["messages"] == []


async def test_escapes_that_hold_no_half_of_a_surrogate_pair_are_accepted(plain_http: httpx2.AsyncClient) -> None:
    body = b'{"id": "m1", "text": "C:\\\\udata \\ud83d\\ude00"}'
    response = await plain_http.post(MESSAGES, content=body, headers=JSON)
    assert response.json()["message"]["parts"][0]["text"] == "C:\\udata 😀"
    assert (await plain_http.post(MESSAGES, json={"text": '{[,\\"' * 110_000})).status_code == 201  # one value


MEDIA_TYPES = [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "multipart/form-data", ""]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", MESSAGES), ("POST", f"{M1}/append"), ("PUT", f"{M1}/parts/0"), ("PATCH", M1), ("POST", f"{M1}/finish")],
)
async def test_body_of_a_change_must_be_json(plain_http: httpx2.AsyncClient, method: str, path: str) -> None:
    for media_type in MEDIA_TYPES:
        headers = {} if media_type is None else {"content-type": media_type}
        response = await plain_http.request(method, path, content=b'{"text": "x"}', headers=headers)
        assert refused(response) == (415, "unsupported_media_type"), media_type
    response = await plain_http.request(method, path, content=b"{}", headers={**JSON, "content-encoding": "gzip"})
    assert refused(response) == (415, "unsupported_media_type")
    assert response.json()["detail"].endswith("send it without Content-Encoding: gzip")
    for plain in ("identity", "UTF-8", ""):
        response = await plain_http.request(method, path, content=b"{", headers={**JSON, "content-encoding": plain})
        assert refused(response) == (400, "invalid_request"), plain  # it was read


@pytest.mark.parametrize(
    ("path", "name", "beyond"),
    [
        (MESSAGES, "before", ["9007199254740993"]),
        (MESSAGES, "limit", ["0", "201"]),
        ("/v1/channels/c/events", "history", ["201"]),
        ("/v1/channels/c/events", "flush_ms", ["1001"]),
        ("/v1/channels/c/events", "ping_s", ["1", "16"]),
        ("/v1/channels/c/poll", "history", ["201"]),
        ("/v1/channels/c/poll", "wait_s", ["61"]),
    ],
)
async def test_numbers_in_queries_are_whole_and_have_bounds(
    plain_http: httpx2.AsyncClient, path: str, name: str, beyond: list[str]
) -> None:
    for value in ("-1", "1.5", "abc", "", "99999999999999999999", "1e3", "+1", "0x10", "١", " 1", *beyond):
        assert refused(await plain_http.get(path, params={name: value})) == (400, "invalid_request"), value
    many = {f"a{number}": "1" for number in range(60)}
    assert refused(await plain_http.get(MESSAGES, params=many)) == (400, "invalid_request")


@pytest.mark.parametrize("number", ["-1", "1.5", "x", "9" * 20, "+1", "%20"])
@pytest.mark.parametrize("path", [f"{M1}/parts/{{}}", f"{M1}/parts/0?generation={{}}"])
async def test_numbers_of_a_part_and_of_a_generation_are_whole(
    plain_http: httpx2.AsyncClient, path: str, number: str
) -> None:
    await create(plain_http, role="assistant", status="streaming")
    for one in (number, "0") if "generation" in path else (number,):
        response = await plain_http.put(path.format(one), json={"type": "text", "text": "x"})
        assert refused(response) == (400, "invalid_request")
