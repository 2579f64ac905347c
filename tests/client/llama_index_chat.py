"""Run by `.venv-clients`: LlamaIndex's `OpenAILike` as a chat model, plain and in async streaming."""

import asyncio
import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, question = sys.argv[1:]
model = OpenAILike(
    model="gpt-4o-mini",
    api_base=f"{url}/v1",
    api_key="unused",
    is_chat_model=True,
    max_tokens=12,
    temperature=0,
    context_window=2048,
)
messages = [
    ChatMessage(role="developer", content="Answer briefly."),
    ChatMessage(role="user", content=question),
]
answer = model.chat(messages)


async def streamed() -> tuple[str, bool]:
    text, sourced = "", False
    async for part in await model.astream_chat(messages):
        text += part.delta or ""
        sourced = sourced or "rag" in (part.raw.model_extra or {})
    return text, sourced


text, sourced = asyncio.run(streamed())
print(
    json.dumps(
        {
            "text": answer.message.content,
            "rag": answer.raw.model_extra["rag"]["status"],
            "streamed": text,
            "stream_sourced": sourced,
        }
    )
)
