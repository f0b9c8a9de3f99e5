"""A chat of Chainlit, as its documents write one for a model. `scripts/f5_apps` runs it."""

import chainlit
from openai import AsyncOpenAI

openai = AsyncOpenAI()  # by OPENAI_BASE_URL


@chainlit.on_message
async def answer(message: chainlit.Message) -> None:
    reply = chainlit.Message(content="")
    question = {"role": "user", "content": message.content}
    async for chunk in await openai.chat.completions.create(model="words", stream=True, messages=[question]):
        await reply.stream_token(chunk.choices[0].delta.content or "")
    await reply.update()
