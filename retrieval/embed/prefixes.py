"""What asymmetric models want in front of a query and of a passage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Text put before every query and before every passage."""

    query: str = ""
    passage: str = ""


_BGE = Prefixes(query="Represent this sentence for searching relevant passages: ")
_E5 = Prefixes(query="query: ", passage="passage: ")

#: By the last part of the model's name, for models whose own config does not say it. From their model cards.
_KNOWN: Mapping[str, Prefixes] = {
    "bge-small-en-v1.5": _BGE,
    "bge-base-en-v1.5": _BGE,
    "bge-large-en-v1.5": _BGE,
    "mxbai-embed-large-v1": _BGE,
    "snowflake-arctic-embed-xs": _BGE,
    "snowflake-arctic-embed-s": _BGE,
    "snowflake-arctic-embed-m": _BGE,
    "e5-small-v2": _E5,
    "e5-base-v2": _E5,
    "e5-large-v2": _E5,
    "multilingual-e5-small": _E5,
    "multilingual-e5-base": _E5,
    "multilingual-e5-large": _E5,
    "nomic-embed-text-v1.5": Prefixes(query="search_query: ", passage="search_document: "),
}


def choose_prefixes(
    model: str, prompts: Mapping[str, str | None], query_prefix: str | None
) -> Prefixes:
    """The prefixes for `model`: the setting, else the model's own prompts, else the table, else none.

    `prompts` is sentence-transformers' `prompts` (`query`, and `document` or `passage`).
    """
    known = _KNOWN.get(model.rstrip("/").rsplit("/", 1)[-1].lower(), Prefixes())
    own_query = prompts.get("query")
    own_passage = prompts.get("document") or prompts.get("passage")
    query = query_prefix if query_prefix is not None else own_query or known.query
    return Prefixes(query=query, passage=own_passage or known.passage)
