"""Run by `.venv-clients`: LlamaIndex's `OpenAILike` as it comes, which is a client of text completions."""

import asyncio
import json
import sys

from llama_index.llms.openai_like import OpenAILike

url, question = sys.argv[1:]
prompt = f"{question}\nThe answer is"
options = {"api_base": f"{url}/v1", "api_key": "unused", "max_tokens": 12, "temperature": 0}
by_name = OpenAILike(model="SmolLM2-135M-Instruct@facts", context_window=2048, **options)
by_body = OpenAILike(
    model="gpt-4o-mini",
    context_window=2048,
    additional_kwargs={"extra_body": {"rag": {"vector_store_ids": ["facts"]}}},
    **options,
)
plain = OpenAILike(model="gpt-4o-mini", context_window=2048, **options)


async def astreamed() -> tuple[str, bool]:
    text, sourced = "", False
    async for part in await by_name.astream_complete(prompt):
        text += part.delta or ""
        sourced = sourced or "rag" in (part.raw.model_extra or {})
    return text, sourced


answer = by_name.complete(prompt)
parts = list(by_name.stream_complete(prompt))
atext, sourced = asyncio.run(astreamed())
print(
    json.dumps(
        {
            "text": answer.text,
            "rag": answer.raw.model_extra["rag"]["status"],
            "by_body": by_body.complete(prompt).text,
            "plain_rag": "rag" in (plain.complete(prompt).raw.model_extra or {}),
            "streamed": parts[-1].text,
            "astreamed": atext,
            "stream_sourced": sourced,
        }
    )
)
