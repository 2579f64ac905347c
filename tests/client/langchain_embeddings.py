"""Run by `.venv-clients`: LangChain's `OpenAIEmbeddings` with its defaults, which send token ids and ask for base64."""

import json
import sys

from langchain_openai import OpenAIEmbeddings

url, texts = sys.argv[1], json.loads(sys.argv[2])
model = OpenAIEmbeddings(base_url=f"{url}/v1", api_key="unused")
print(json.dumps({"documents": model.embed_documents(texts), "query": model.embed_query(texts[0])}))
