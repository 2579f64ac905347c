"""Run by `.venv-clients`: fills a collection as an application with `langchain-chroma` does.

Arguments: host, port, collection. Standard input: JSON, {text: [vector, metadata]}.
"""

import json
import sys

from chromadb.config import Settings
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings

host, port, collection = sys.argv[1:]
rows = json.load(sys.stdin)


class Model(Embeddings):
    """The vectors that the application's model made."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [rows[text][0] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        raise NotImplementedError(text)


store = Chroma(
    collection,
    embedding_function=Model(),
    host=host,
    port=int(port),
    client_settings=Settings(anonymized_telemetry=False),
)
ids = store.add_texts(list(rows), metadatas=[metadata for _, metadata in rows.values()])
print(json.dumps({"ids": len(ids)}))
