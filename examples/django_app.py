"""Tenuto beside Django, in one file.

Run `python examples/django_app.py` (or `uvicorn examples.django_app:application`), open http://127.0.0.1:8000, ask
a question and press F5 during the answer. `Remark` goes through an ordinary view in a thread, with `hub.sync`; `Ask`
goes through an async view. The hub serves all paths below /tenuto, Django serves the others.
"""

import asyncio
from collections.abc import AsyncIterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_POST

from tenuto import Hub

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"], MIDDLEWARE=[])

hub = Hub("sqlite:///django-example.db")

CHANNEL = "chat:django"
PACE_S = 0.05


@require_POST
async def ask(request: HttpRequest) -> HttpResponse:
    prompt = await hub.create(CHANNEL, role="user", author="you", text=request.POST["text"])
    hub.start_task(answer(prompt.id))
    return JsonResponse({"id": prompt.id}, status=201)


async def answer(prompt_id: str) -> None:
    async with hub.message(CHANNEL, role="assistant", author="bot", reply_to=prompt_id) as message:
        async for token in model():
            await message.append(token)


async def model() -> AsyncIterator[str]:
    """Stand in for your model."""
    for count in range(1, 121):
        await asyncio.sleep(PACE_S)
        yield f"{count} "


@require_POST
def remark(request: HttpRequest) -> HttpResponse:
    stored = hub.sync.create(CHANNEL, role="user", author="you", text=request.POST["text"])
    return JsonResponse({"id": stored.id}, status=201)


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE)


PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Django and Tenuto</title>
<style>body { max-width: 40rem; margin: auto; padding: 1rem; font: 1rem system-ui } p { white-space: pre-wrap }</style>
<div id="messages"></div>
<form id="form">
  <input name="text" required autofocus>
  <button value="ask">Ask</button> <button value="remark">Remark</button>
</form>
<script type="module">
  import { connect } from "./tenuto/web/client.js"

  const channel = connect({ url: "tenuto" }).channel("chat:django")

  function line({ author, status, parts = [] }) {
    const p = document.createElement("p")
    const note = status === "complete" ? "" : ` (${status})`
    p.textContent = `${author}${note}: ${parts.map((part) => part.text).join("")}`
    return p
  }
  channel.subscribe(() => messages.replaceChildren(...channel.getSnapshot().messages.map(line)))

  form.onsubmit = (event) => {
    event.preventDefault()
    fetch(event.submitter.value, { method: "POST", body: new FormData(form) })
    form.reset()
  }
</script>
"""

urlpatterns = [path("", page), path("ask", ask), path("remark", remark)]

application = hub.wrap(get_asgi_application(), "/tenuto")

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(application, port=8000)
