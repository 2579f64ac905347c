"""Run by `.venv-clients`: LangChain's `ChatOpenAI`, told nothing but the base URL. Prints what it saw."""

import asyncio
import json
import sys

from langchain_openai import ChatOpenAI

url, question = sys.argv[1:]
model = ChatOpenAI(
    model="gpt-4o-mini",
    base_url=f"{url}/v1",
    api_key="unused",
    max_tokens=12,
    temperature=0,
    include_response_headers=True,
)
answer = model.invoke(question)
stream = list(model.stream(question))


async def streamed() -> str:
    return "".join([chunk.content async for chunk in model.astream(question)])


async_text = asyncio.run(streamed())
print(
    json.dumps(
        {
            "text": answer.content,
            "headers": dict(answer.response_metadata["headers"]),
            "model": answer.response_metadata["model_name"],
            "usage": answer.usage_metadata,
            "streamed": "".join(chunk.content for chunk in stream),
            "stream_headers": dict(stream[0].response_metadata.get("headers", {})),
            "astreamed": async_text,
        }
    )
)
