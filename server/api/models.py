"""`GET /v1/models`: the engine's models, the embedder, and `<model>@<store>` for each store."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter

from server.deps import CallerDep, KnowledgeDep, ServicesDep
from server.errors import ModelNotFound
from server.knowledge import Knowledge
from server.plan import NO_STORE
from server.routing import AUTO
from server.services import Services

router = APIRouter()


@router.get("/v1/models")
async def list_models(
    services: ServicesDep, knowledge: KnowledgeDep, caller: CallerDep
) -> dict[str, Any]:
    """Every name that `model` may have, foreign aliases aside."""
    return {
        "object": "list",
        "data": list((await _cards(services, knowledge, caller.tenant)).values()),
    }


@router.get("/v1/models/{model:path}")
async def retrieve_model(
    model: str, services: ServicesDep, knowledge: KnowledgeDep, caller: CallerDep
) -> dict[str, Any]:
    """One model by its exact name. Raises ModelNotFound."""
    cards = await _cards(services, knowledge, caller.tenant)
    if model not in cards:
        raise ModelNotFound(f"The model {model!r} does not exist. Known: {', '.join(cards)}.")
    return cards[model]


async def _cards(
    services: Services, knowledge: Knowledge, tenant: str
) -> dict[str, dict[str, Any]]:
    chat = {
        card.id: _card(card.id, card.created, card.owned_by, max_model_len=card.max_model_len)
        for card in await services.engine.models()
    }
    created = next(iter(chat.values()))["created"]
    if (rule := services.models.routing) is not None:
        # The shorter of the two: a promise that holds whichever answers.
        known = [chat[name]["max_model_len"] for name in (rule.small, rule.large)]
        length = None if None in known else min(known)
        chat[AUTO] = _card(AUTO, created, "groundwire", max_model_len=length)
    cards = dict(chat)
    cards[services.models.embedder] = _card(services.models.embedder, created, "groundwire")
    stores = await knowledge.catalog.list_stores(tenant)
    names = Counter(store.name for store in stores)
    for store in stores:
        # A name that two stores share, that means "no retrieval", or that would be split at its own `@`, leaves
        # only the id to call it by.
        alone = store.name and names[store.name] == 1 and store.name != NO_STORE
        ref = store.name if alone and "@" not in store.name else store.id
        for model in chat:
            name = f"{model}@{ref}"
            cards[name] = _card(name, store.created_at, "groundwire", parent=model)
    return cards


def _card(name: str, created: int, owned_by: str, **extra: Any) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by, **extra}
