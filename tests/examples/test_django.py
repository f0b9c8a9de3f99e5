"""Django's servers with a hub: WSGI servers are reported with the remedy, ASGI servers work.

Layer: tests.

The project is one file, as small as Django permits, and runs in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.async_api import Browser, expect

from proof.chaos.processes import free_port
from tests.examples.programs import ROOT, blocks
from tests.examples.test_pages import opened
from tests.processes import Process, request

PROJECT = """\
import sys

import threading

from asgiref.wsgi import WsgiToAsgi
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tenuto import Hub

settings.configure(DEBUG=True, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
hub = Hub("sqlite:///mysite.db")


@csrf_exempt
def say(request: HttpRequest) -> HttpResponse:
    return HttpResponse(hub.sync.create("chat:1", text="hello").id, status=201)


async def say_async(request: HttpRequest) -> HttpResponse:
    async with hub.message("chat:1") as message:
        await message.append("hello")
    return HttpResponse(message.id, status=201)


def say_later(request: HttpRequest) -> HttpResponse:
    is_sent = threading.Event()

    def work() -> None:
        is_sent.wait()
        hub.sync.create("chat:1", text="hello")

    class Response(HttpResponse):
        def close(self) -> None:
            super().close()
            is_sent.set()

    threading.Thread(target=work).start()
    return Response("later")


urlpatterns = [
    path("say", say),
    path("async", csrf_exempt(say_async)),
    path("later", csrf_exempt(say_later)),
    path("", lambda request: HttpResponse("ready")),
]
wsgi = get_wsgi_application()
application = hub.wrap(get_asgi_application(), "/tenuto")
below_asgi = hub.wrap(WsgiToAsgi(wsgi), "/tenuto")

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
"""
RUNSERVER = ["mysite.py", "runserver", "--noreload"]
GUNICORN = ["-m", "gunicorn", "--worker-class", "gthread", "mysite:wsgi", "--bind"]


@contextlib.contextmanager
def running(folder: Path, *arguments: str, port: int) -> Iterator[Process]:
    """Run a server of the project until the block ends."""
    with Process(list(arguments), folder / "server.log") as process:
        process.until(lambda: request(port, "GET", "/")[0] == 200)
        yield process


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mysite.py").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


@pytest.mark.parametrize("arguments", [RUNSERVER, GUNICORN], ids=["runserver", "gunicorn"])
def test_server_over_wsgi_is_reported_with_the_remedy(project: Path, arguments: list[str]) -> None:
    port, expected = free_port(), "no page can reach the hub: this process serves WSGI, and the hub needs ASGI"
    with running(project, *arguments, f"127.0.0.1:{port}", port=port) as process:
        assert expected in process.output
        for path in ("/say", "/async"):  # each way to write in a view
            status, page = request(port, "POST", path, {})
            assert status == 500, path
            assert expected in page, path
        before = process.output.count(expected)
        assert request(port, "POST", "/later", {}) == (200, "later")
        process.until(lambda: process.output.count(expected) > before)
        for remedy in ("uvicorn mysite.asgi:application", "daphne mysite.asgi:application", "docs/django.md"):
            assert remedy in process.output
    assert not (project / "mysite.db").exists()


LOGIN = """\
import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import call_command

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="x",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "django.db"}},
)
urlpatterns = []
django.setup()
call_command("migrate", verbosity=0)

from asgiref.sync import SyncToAsync
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from starlette.testclient import TestClient
from tenuto import Hub
from page import authenticate

ann, _ = get_user_model().objects.get_or_create(username="ann")
client = Client()
client.force_login(ann)
hub = Hub("memory://", authenticate=authenticate)
page = TestClient(hub.wrap(get_asgi_application(), "/tenuto"), base_url="http://localhost", client=("127.0.0.1", 1))
known = f"{settings.SESSION_COOKIE_NAME}={client.cookies[settings.SESSION_COOKIE_NAME].value}"
path = "/tenuto/v1/channels/chat:{}:notes/messages"
for number, cookie in ((ann.pk, known), (ann.pk + 1, known), (ann.pk, "sessionid=other"), (ann.pk, "")):
    print(page.get(path.format(number), headers={"cookie": cookie}).status_code)
print(SyncToAsync.single_thread_executor.submit(lambda: connection.connection).result())
settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "y", ["x"]
for _ in range(2):
    print(page.get(path.format(ann.pk), headers={"cookie": known}).status_code)
"""


CHAT, URLS, ASGI, VERIFIER, REFUSALS = blocks("docs/django.md")


async def test_the_project_of_the_page_keeps_its_chat_and_its_views_write(project: Path, browser: Browser) -> None:
    (project / "mysite.py").unlink()
    start = [sys.executable, "-m", "django", "startproject", "mysite", "."]
    await asyncio.to_thread(subprocess.run, start, check=True)
    for name, source in {"chat": CHAT, "urls": URLS, "asgi": ASGI}.items():
        (project / "mysite" / f"{name}.py").write_text(source)
    port = free_port()
    arguments = ["-m", "uvicorn", "mysite.asgi:application", "--port", str(port)]
    with running(project, *arguments, port=port) as process:
        async with opened(browser, f"http://127.0.0.1:{port}") as page:
            await page.fill("textarea", "Why?")
            await page.press("textarea", "Enter")
            articles = page.locator("article")
            await expect(articles.last).to_contain_text("You asked: Why? This")
            await page.reload()
            await expect(articles.last).to_contain_text("You asked: Why? This is a long answer. This")
            await page.fill("input[name=text]", "A remark")
            await page.get_by_role("button", name="Remark").click()
            await expect(articles.last).to_contain_text("A remark")
            await expect(articles).to_have_count(3)
        assert not [words for words in ("Traceback", "no page can reach the hub") if words in process.output]


def test_the_verifier_of_the_page_reads_djangos_session(project: Path) -> None:
    (project / "page.py").write_text(VERIFIER)
    (project / "login.py").write_text(LOGIN)
    ran = subprocess.run([sys.executable, "login.py"], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["200", "403", "401", "401", "None", "200", "200"], ran.stderr


def test_wsgi_views_below_an_asgi_server_without_a_lifespan_write_and_the_hub_shows_it(project: Path) -> None:
    port = free_port()
    arguments = ["-m", "uvicorn", "mysite:below_asgi", "--port", str(port), "--lifespan", "off"]
    with running(project, *arguments, port=port) as process:
        status, message_id = request(port, "POST", "/say", {})
        assert status == 201, process.output
        status, page = request(port, "GET", "/tenuto/v1/channels/chat:1/messages")
        assert (status, [one["id"] for one in page["messages"]]) == (200, [message_id])
        assert "no page can reach the hub" not in process.output


VISITED = """
from django.conf import settings
from django.urls import path
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", MIDDLEWARE=["page.Refusals"])
from asgiref.sync import async_to_sync
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.views.decorators.csrf import csrf_exempt
from tenuto import Hub, visitors

guests = visitors(questions_per_minute=2, address_factor=2)
hub = Hub("memory://", authenticate=guests)


@csrf_exempt
async def ask(request):
    visitor = await guests.of(request)
    return HttpResponse((await hub.create(f"chat:{visitor}", text="why?")).author)


@csrf_exempt
def ask_in_thread(request):
    visitor = async_to_sync(guests.of)(request)
    hub.sync.create(f"chat:{visitor}", text="why?", author="you")
    return HttpResponse(visitor)


urlpatterns = [path("", lambda request: HttpResponse()), path("ask", ask), path("thread", ask_in_thread)]
application = hub.wrap(get_asgi_application(), "/tenuto")
"""


def test_views_of_django_know_their_visitors_and_refuse_a_question_too_many(project: Path) -> None:
    (project / "page.py").write_text(REFUSALS)
    (project / "visited.py").write_text(VISITED)
    port = free_port()
    server = running(project, "-m", "uvicorn", "visited:application", "--port", str(port), port=port)
    here = f"http://127.0.0.1:{port}"
    with server, httpx2.Client(base_url=here, headers={"origin": here}) as ann:
        first = ann.post("/thread")
        assert first.status_code == 200
        assert f"={first.text}." in first.headers["set-cookie"]
        assert "set-cookie" not in ann.post("/ask").headers
        refused = ann.post("/thread")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many")
        assert refused.headers["retry-after"] == "30"
        assert ann.post("/ask", headers={"authorization": "Bearer x"}).status_code == 401
        messages = ann.get(f"/tenuto/v1/channels/chat:{first.text}/messages").json()["messages"]
        assert [one.get("author") for one in messages] == [None, "you"]
        statuses = []
        for _ in range(4):
            ann.cookies.clear()
            statuses.append(ann.post("/ask").status_code)
        assert statuses == [200, 200, 429, 429]  # of the address
