"""A real llama.cpp server: a process that dies in mid-answer reads the same answer on, or continues its text.

Layer: tests.

Each scene is `python -m tests.interop.long.test_llama_cpp SCENE FOLDER`, run again until it ends by itself. The first
process dies when people have seen some text. `scripts/test_interop` has the packages `xllamacpp`, the server, and
`gguf`, with which a test writes a model of random weights whose tokens are letters.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from string import ascii_letters
from typing import Any

import pytest
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk

from tenuto import Hub, MessageWriter, Turn
from tests.interop.long.test_bridges import DIED, calls, is_first, note, played

PORT, TOKENS, SEEN = 17_234, 3000, 500
LAYERS, WIDTH, HEADS = 2, 64, 4
URL = f"http://127.0.0.1:{PORT}/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run llama.cpp's server with the model."""
    pytest.importorskip("xllamacpp")
    command = [sys.executable, "-m", __name__, "serve", str(tmp_path_factory.mktemp("model"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        yield
        process.communicate(timeout=20)  # it ends with its input


@pytest.mark.parametrize("scene", ["attach", "prefix"])
def test_the_next_process_has_the_whole_answer(server: None, tmp_path: Path, scene: str) -> None:
    report = played(scene, tmp_path, __name__)
    assert report["processes"] == 2
    (text, joins), truth = report["answer"], report["truth"]
    assert (len(truth), text) == (2 * TOKENS, truth)
    assert len(joins) == 1
    assert SEEN <= joins[0] < len(truth)
    assert report["calls"] == (["model"] if scene == "attach" else ["model", "model"])


# -- in processes of their own ----------------------------------------------------------------------------------------


def write_model() -> None:
    import gguf
    import numpy as np

    random = np.random.default_rng(7)
    letters = [f"▁{letter}" for letter in ascii_letters]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = gguf.GGUFWriter("model.gguf", "llama")
    model.add_context_length(8192)
    model.add_embedding_length(WIDTH)
    model.add_block_count(LAYERS)
    model.add_feed_forward_length(2 * WIDTH)
    model.add_head_count(HEADS)
    model.add_layer_norm_rms_eps(1e-5)
    model.add_rope_dimension_count(WIDTH // HEADS)
    model.add_tokenizer_model("llama")
    model.add_token_list([*special, *letters])
    model.add_token_scores([0.0] * 3 + [-100.0] * 256 + [-float(rank) for rank in range(len(letters))])
    model.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(letters))  # unknown, control, bytes, normal
    model.add_chat_template("{% for message in messages %}{{ message['content'] }} {% endfor %}")

    def weights(name: str, *shape: int, scale: float = 0.5, zeros: int = 0) -> None:
        values = (random.standard_normal(shape) * scale).astype(np.float32)
        values[:zeros] = 0
        model.add_tensor(f"{name}.weight", values)

    tokens = len(special) + len(letters)
    weights("token_embd", tokens, WIDTH)
    weights("output", tokens, WIDTH, scale=3.0, zeros=len(special))  # so each token of an answer is a letter
    model.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            model.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"blk.{layer}.{name}", WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            weights(f"blk.{layer}.{name}", 2 * WIDTH, WIDTH)
        weights(f"blk.{layer}.ffn_down", WIDTH, 2 * WIDTH)
    model.write_header_to_file()
    model.write_kv_data_to_file()
    model.write_tensors_to_file()
    model.close()


def serve() -> None:
    import xllamacpp

    write_model()
    options = xllamacpp.CommonParams()
    options.model.path = "model.gguf"
    options.hostnames, options.port = ["127.0.0.1"], PORT
    options.n_ctx, options.n_parallel, options.cpuparams.n_threads = 8192, 1, 1
    server = xllamacpp.Server(options)
    assert server.listening_address
    print("listens", flush=True)
    sys.stdin.read()


client = AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)


def ask(messages: list[Any], tokens: int = TOKENS, **options: Any) -> Any:
    return client.chat.completions.create(
        model="model", messages=messages, max_tokens=tokens, temperature=0, stream=True, **options
    )


def record(conversation: str) -> Any:
    """Return the stream that the server keeps for a conversation."""
    where = {"conv_id": conversation, "from": 0}
    kind = AsyncStream[ChatCompletionChunk]
    return client.get("/stream", cast_to=object, options={"params": where}, stream=True, stream_cls=kind)


async def attach(turn: Turn, message: MessageWriter) -> None:
    """Read the answer on that goes on without its reader."""

    def make() -> Any:
        note("model")
        asked = [{"role": "user", "content": turn.text}]
        return ask(asked, extra_headers={"X-Conversation-Id": turn.message.id})

    await message.pipe(make, attach=lambda id, cursor: record(turn.message.id))


async def prefix(turn: Turn, message: MessageWriter) -> None:
    """Let the model continue the text."""

    def make(so_far: Any) -> Any:
        note("model")
        asked = [{"role": "user", "content": turn.text}]
        if not so_far.text:
            return ask(asked)
        asked.append({"role": "assistant", "content": so_far.text})
        flags = {"continue_final_message": True, "add_generation_prompt": False}
        return ask(asked, TOKENS - len(so_far.text) // 2, extra_body=flags)

    await message.pipe(make, on_break="prefix")


SCENES: dict[str, Callable[[Turn, MessageWriter], Any]] = {"attach": attach, "prefix": prefix}


async def play(scene: str) -> dict[str, Any]:
    hub = Hub("sqlite:///chat.db")

    @hub.agent("chat:*", on_crash="continue" if scene == "prefix" else "restart")
    async def assistant(turn: Turn) -> None:
        async with turn.reply() as message:
            await SCENES[scene](turn, message)

    await hub.start()
    if is_first("asked"):
        await hub.create("chat:1", text="hello", id=f"q-{scene}")
    async with asyncio.timeout(60.0), aclosing(hub.subscribe("chat:1", history=10).batches()) as batches:
        async for _ in batches:
            answers = [one for one in (await hub.history("chat:1")).messages if one.reply_to is not None]
            if answers and len(answers[0].text) >= SEEN and is_first("died"):
                os._exit(DIED)
            if answers and answers[0].status == "complete":
                break
    stream = await (record(f"q-{scene}") if scene == "attach" else ask([{"role": "user", "content": "hello"}]))
    truth = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    await hub.close()
    (part,) = answers[0].parts
    return {"answer": (part["text"], part.get("joins")), "truth": truth, "calls": calls()}


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(asyncio.run(play(sys.argv[1]))))
