"""A stand-in for a model with OpenAI's chat completions: 160 words in 16 seconds. `scripts/f5_apps` serves it."""

import asyncio
import json

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

app = FastAPI()


@app.get("/v1/models")
async def models() -> dict[str, object]:
    return {"object": "list", "data": [{"id": "words", "object": "model", "created": 0, "owned_by": "nobody"}]}


@app.post("/v1/chat/completions", response_model=None)
async def completions(request: Request) -> StreamingResponse | dict[str, object]:
    answer = {"id": "1", "created": 0, "model": "words"}
    if not (await request.json()).get("stream"):  # for a title
        message = {"role": "assistant", "content": "Words"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return answer | {"object": "chat.completion", "choices": [choice]}

    async def events():  # type: ignore[no-untyped-def]
        for word in [*(f"word{number} " for number in range(160)), None]:
            await asyncio.sleep(0.1)
            delta = {"content": word} if word else {}
            choice = {"index": 0, "delta": delta, "finish_reason": None if word else "stop"}
            yield f"data: {json.dumps(answer | {'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")
