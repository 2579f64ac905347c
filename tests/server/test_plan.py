"""plan: WIRE section 2, row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from server.errors import BadRequest, ModelNotFound, mapped
from server.plan import Defaults, Models, Plan, engine_body, plan, text_body
from server.routing import Rule
from server.settings import RoutingSettings, Settings
from server.wire.chat import ChatRequest
from server.wire.completions import CompletionRequest

ALIASES = Settings.model_fields["model_aliases"].get_default(call_default_factory=True)
MODELS = Models(chat=("scripted", "org/lora@v2"), embedder="all-MiniLM-L6-v2", aliases=ALIASES)
NO_DEFAULT = Defaults(
    default_store=None,
    top_k=4,
    max_context_tokens=2048,
    answer_reserve_tokens=512,
    on_error="skip",
)
DEFAULTS = Defaults(
    default_store="docs",
    top_k=4,
    max_context_tokens=2048,
    answer_reserve_tokens=512,
    on_error="skip",
    media_domains=("pics.example",),
)
USER = {"role": "user", "content": "What is the limit?"}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def file_search(*stores: str, **fields: Any) -> dict[str, Any]:
    return {"type": "file_search", "vector_store_ids": list(stores), **fields}


def planned(
    headers: dict[str, str] | None = None, defaults: Defaults = DEFAULTS, **fields: Any
) -> Plan:
    body = {"model": "scripted", "messages": [USER], **fields}
    present = {key: value for key, value in body.items() if value is not None}
    return plan(ChatRequest.model_validate(present), headers or {}, MODELS, defaults)


def sent(**fields: Any) -> dict[str, Any]:
    """What the engine gets."""
    body = {"model": "scripted", "messages": [USER], **fields}
    return engine_body(body, planned(**fields))


WAYS_IN = [
    ("tools.vector_store_ids", {"tools": [file_search("a")]}),
    ("rag.vector_store_ids", {"rag": {"vector_store_ids": ["b"]}}),
    ("X-RAG-Vector-Store", {"headers": {"x-rag-vector-store": "c"}}),
    ("model", {"model": "scripted@d"}),
    (None, {}),
]
STORES = ["a", "b", "c", "d", "docs"]


@pytest.mark.parametrize("first", range(5))
def test_the_highest_way_in_wins(first: int) -> None:
    fields: dict[str, Any] = {}
    for _, way in WAYS_IN[first:]:
        fields |= way
    made = planned(**fields)
    assert made.store_refs == (STORES[first],)
    assert made.chosen_in == WAYS_IN[first][0]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rag": {"enabled": False}}, "rag.enabled"),
        ({"rag": {"enabled": False, "vector_store_ids": ["b"]}}, "rag.enabled"),
        ({"headers": {"x-rag": "off"}}, "X-RAG"),
        ({"headers": {"x-rag": " OFF ", "x-rag-vector-store": "c"}}, "X-RAG"),
        ({"model": "scripted@none"}, "model"),
        ({"model": "gpt-4o-mini@none"}, "model"),
        ({"rag": {"enabled": False}, "model": "scripted@d"}, "rag.enabled"),
        ({"rag": {"enabled": False}, "headers": {"x-rag": "on"}}, "rag.enabled"),
        ({"headers": {"x-rag": "off"}, "model": "scripted@d"}, "X-RAG"),
    ],
)
def test_retrieval_can_be_switched_off(fields: dict[str, Any], field: str) -> None:
    made = planned(**fields)
    assert not made.searches
    assert made.chosen_in == field


@pytest.mark.parametrize(
    ("fields", "stores"),
    [
        ({"tools": [file_search("a")], "rag": {"enabled": False}}, ("a",)),
        ({"rag": {"vector_store_ids": ["b"]}, "headers": {"x-rag": "off"}}, ("b",)),
        ({"rag": {"enabled": True}, "headers": {"x-rag": "off"}}, ("docs",)),
        ({"rag": {"enabled": True}, "model": "gpt-4o-mini@none"}, ("docs",)),
        ({"headers": {"x-rag": "on"}, "model": "scripted@none"}, ("docs",)),
        ({"rag": {"enabled": True}, "model": "scripted@d"}, ("d",)),
        ({"headers": {"x-rag-vector-store": "c"}, "model": "scripted@none"}, ("c",)),
        ({"headers": {"x-rag-vector-store": " c , d ,, c"}}, ("c", "d")),
        ({"rag": {"vector_store_ids": ["b", "e", "b"]}}, ("b", "e")),
        ({"rag": {"vector_store_ids": []}}, ("docs",)),
        ({"tools": [file_search("a", "b")]}, ("a", "b")),
    ],
)
def test_a_higher_way_in_overrules_off(fields: dict[str, Any], stores: tuple[str, ...]) -> None:
    assert planned(**fields).store_refs == stores


def test_without_any_store_nothing_is_searched() -> None:
    assert not planned(defaults=NO_DEFAULT).searches


@pytest.mark.parametrize("model", ["scripted", "scripted@none"])
@pytest.mark.parametrize("fields", [{"rag": {"enabled": True}}, {"headers": {"x-rag": "on"}}])
def test_on_without_any_store_is_refused(fields: dict[str, Any], model: str) -> None:
    with pytest.raises(BadRequest) as caught:
        planned(defaults=NO_DEFAULT, model=model, **fields)
    assert caught.value.param == "rag.vector_store_ids"


# --- models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "engine_model", "store"),
    [
        ("scripted", "scripted", "docs"),
        ("", "scripted", "docs"),
        ("org/lora@v2", "org/lora@v2", "docs"),  # an exact id holds an @
        ("org/lora@v2@handbook", "org/lora@v2", "handbook"),
        ("scripted@a@b", None, None),
        ("gpt-4o-mini", "scripted", "docs"),
        ("o3-mini", "scripted", "docs"),
        ("o1", "scripted", "docs"),
        ("chatgpt-4o-latest", "scripted", "docs"),
        ("gpt-4o-mini@handbook", "scripted", "handbook"),  # not swallowed by `gpt-*`
        ("@handbook", "scripted", "handbook"),
        ("scripted@my store: été", "scripted", "my store: été"),
    ],
)
def test_model_names(name: str, engine_model: str | None, store: str | None) -> None:
    if engine_model is None:
        with pytest.raises(ModelNotFound):
            planned(model=name)
        return
    made = planned(model=name)
    assert (made.engine_model, made.store_refs) == (engine_model, (store,))
    assert made.model == (name or "scripted")


def test_an_alias_that_holds_an_at_is_exact() -> None:
    models = Models(("m",), "e", {"team@prod": "chat", "*@prod": "chat"})
    request = ChatRequest.model_validate({"model": "team@prod", "messages": [USER]})
    assert plan(request, {}, models, DEFAULTS).store_refs == ("docs",)
    request = ChatRequest.model_validate({"model": "other@prod", "messages": [USER]})
    assert plan(request, {}, models, DEFAULTS).store_refs == ("docs",)


def test_an_absent_model_is_the_engines_first() -> None:
    made = planned(model=None)
    assert (made.model, made.engine_model) == ("scripted", "scripted")


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(ModelNotFound) as caught:
        planned(model="llama-9")
    assert caught.value.param == "model"
    for name in ("llama-9", "scripted", "org/lora@v2", "all-MiniLM-L6-v2", "gpt-*"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "text-embedding-3-small", "scripted@"])
def test_a_name_that_cannot_chat(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        planned(model=name)
    assert caught.value.param == "model"


# --- what is not built, or wrong --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rag": {"filters": {"type": "eq", "key": "a", "value": 1}}}, "rag.filters"),
        ({"tools": [file_search("a", filters={"type": "eq"})]}, "tools.filters"),
    ],
)
def test_what_is_not_built_says_so(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match="not supported yet") as caught:
        planned(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [file_search("a"), file_search("b")]}, "tools"),
        ({"tools": [FUNCTION, file_search()]}, "tools.1.vector_store_ids"),
        ({"tools": [{"type": "file_search"}]}, "tools.0.vector_store_ids"),
        ({"tools": [file_search("a", max_num_results=51)]}, "tools.0.max_num_results"),
        ({"tools": [file_search("a", max_num_results="4")]}, "tools.0.max_num_results"),
        (
            {"tools": [file_search("a", ranking_options={"score_threshold": 2})]},
            "tools.0.ranking_options.score_threshold",
        ),
        ({"tools": [file_search("a", wrong=1)]}, "tools.0.wrong"),
        ({"headers": {"x-rag": "maybe"}}, "X-RAG"),
        ({"headers": {"x-rag-top-k": "0"}}, "X-RAG-Top-K"),
        ({"headers": {"x-rag-top-k": "51"}}, "X-RAG-Top-K"),
        ({"headers": {"x-rag-top-k": "four"}}, "X-RAG-Top-K"),
        ({"headers": {"x-rag-top-k": "-1"}}, "X-RAG-Top-K"),
        ({"headers": {"x-rag-top-k": "²"}}, "X-RAG-Top-K"),
        ({"headers": {"x-rag-top-k": "9" * 5000}}, "X-RAG-Top-K"),
        ({"headers": {"x-rag-top-k": "0000019999"}}, "X-RAG-Top-K"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        planned(**fields)
    assert caught.value.param == param
    assert mapped(caught.value).status == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"rag": {"wrong": 1}}, "rag.wrong"),
        ({"rag": {"enabled": "yes"}}, "rag.enabled"),
        ({"rag": {"max_num_results": 0}}, "rag.max_num_results"),
        ({"rag": {"max_context_tokens": -1}}, "rag.max_context_tokens"),
        ({"rag": {"on_error": "retry"}}, "rag.on_error"),
        ({"rag": {"on_empty": 1}}, "rag.on_empty"),
        ({"rag": {"vector_store_ids": "a"}}, "rag.vector_store_ids"),
        ({"rag": {"vector_store_ids": [1]}}, "rag.vector_store_ids.0"),
        ({"rag": []}, "rag"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages.1.content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages.0.content"),
        ({"messages": [None]}, "messages.0"),
        ({"model": 5}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": "usage"}, "stream_options"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": []}, "max_completion_tokens"),
        ({"n": "2"}, "n"),
        ({"n": True}, "n"),
        ({"tools": {}}, "tools"),
        ({"tools": ["file_search"]}, "tools.0"),
    ],
)
def test_a_wrong_type_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ValidationError) as caught:
        planned(**fields)
    assert BadRequest.of(caught.value).param == param
    assert param in str(BadRequest.of(caught.value))


def test_null_means_absent() -> None:
    options = dict.fromkeys(
        ("enabled", "vector_store_ids", "max_num_results", "filters", "ranking_options",
         "max_context_tokens", "include_text", "dry_run", "on_error", "on_empty", "footer")
    )  # fmt: skip
    tool = file_search("a", max_num_results=None, filters=None, ranking_options=None)
    for fields in ({"rag": options}, {"rag": None, "tools": None, "n": None, "stream": None}):
        assert planned(**fields) == planned()
    assert planned(tools=[tool]) == planned(tools=[file_search("a")])


# --- options ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "top_k"),
    [
        ({}, 4),
        ({"headers": {"x-rag-top-k": " 7 "}}, 7),
        ({"headers": {"x-rag-top-k": "7"}, "rag": {"max_num_results": 8}}, 8),
        ({"rag": {"max_num_results": 8}, "tools": [file_search("a", max_num_results=9)]}, 9),
    ],
)
def test_top_k(fields: dict[str, Any], top_k: int) -> None:
    assert planned(**fields).top_k == top_k


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 512),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": -3}, 0),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
    ],
)
def test_what_is_kept_for_the_answer(fields: dict[str, Any], tokens: int) -> None:
    assert planned(**fields).answer_tokens == tokens


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({}, 128), ({"max_tokens": 700}, 700), ({"max_completion_tokens": 9}, None)],
)
def test_the_server_s_limit_is_for_chats_without_one(
    fields: dict[str, Any], limit: int | None
) -> None:
    body = {"model": "scripted", "messages": [USER], **fields}
    limited = planned(defaults=replace(DEFAULTS, max_tokens=128), **fields)
    assert engine_body(body, limited).get("max_tokens") == limit
    assert limited.answer_tokens == (fields.get("max_completion_tokens") or limit)


def test_without_a_server_s_limit_a_chat_stays_without_one() -> None:
    assert "max_tokens" not in sent()


def test_options_of_rag() -> None:
    made = planned(
        rag={
            "ranking_options": {"ranker": "auto", "score_threshold": 0.4},
            "max_context_tokens": 0,
            "include_text": True,
            "footer": True,
            "on_error": "fail",
            "on_empty": "refuse",
        }
    )
    assert (made.score_threshold, made.max_context_tokens) == (0.4, 0)
    assert (made.include_text, made.footer) == (True, True)
    assert (made.on_error, made.on_empty) == ("fail", "refuse")
    both = planned(
        rag={"ranking_options": {"score_threshold": 0.4}},
        tools=[file_search("a", ranking_options={"score_threshold": 0.6})],
    )
    assert both.score_threshold == 0.6


# --- the question -----------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "42"}
PREFILL = {"role": "assistant", "content": "The limit is"}


@pytest.mark.parametrize(
    ("messages", "index", "question"),
    [
        ([USER], 0, "What is the limit?"),
        ([SYSTEM, {"role": "user", "content": "old"}, PREFILL, USER], 3, "What is the limit?"),
        ([SYSTEM, USER, CALL, RESULT], 1, "What is the limit?"),
        ([USER, PREFILL], 0, "What is the limit?"),
        ([SYSTEM], None, ""),
        ([{"role": "user", "content": None}], 0, ""),
        ([{"role": "user", "content": " \n "}], 0, ""),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                        {"type": "text", "text": "the limit?"},
                        {"type": "text", "text": 5},
                    ],
                }
            ],
            0,
            "What is\nthe limit?",
        ),
    ],
)
def test_the_question(messages: list[Any], index: int | None, question: str) -> None:
    made = planned(messages=messages)
    assert (made.question_index, made.question) == (index, question)
    assert made.searches == (index is not None)


# --- what the engine gets ---------------------------------------------------------------------------


def test_file_search_alone_takes_the_tool_fields_with_it() -> None:
    body = sent(tools=[file_search("a")], tool_choice="required", parallel_tool_calls=True)
    assert body == {"model": "scripted", "messages": [USER]}


@pytest.mark.parametrize("choice", [{"type": "file_search"}, "auto", "required"])
def test_function_tools_beside_file_search_stay(choice: Any) -> None:
    body = sent(tools=[FUNCTION, file_search("a")], tool_choice=choice, parallel_tool_calls=False)
    assert body["tools"] == [FUNCTION]
    assert body["parallel_tool_calls"] is False
    assert body.get("tool_choice") == (choice if isinstance(choice, str) else None)


def test_the_engine_gets_no_field_of_ours_and_no_null() -> None:
    body = sent(
        model="gpt-4o-mini@docs", rag={"footer": True}, request_id="mine", temperature=None, seed=0
    )
    assert body == {"model": "scripted", "messages": [USER], "seed": 0}


def test_what_clients_echo_is_taken_off() -> None:
    echoed = {
        "role": "assistant",
        "content": "30 days [1].",
        "annotations": [{"type": "url_citation", "url_citation": {}}],
        "refusal": None,
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    body = sent(messages=[USER, echoed, USER])
    assert body["messages"][1] == {"role": "assistant", "content": "30 days [1]."}
    assert body["messages"][0] is USER


@pytest.mark.parametrize(
    "message",
    [
        USER,
        {"role": "tool", "tool_call_id": "1", "content": "42"},
        {"role": "assistant", "content": "x"},
    ],
)
def test_null_in_a_message_means_absent(message: dict[str, Any]) -> None:
    nulls = dict.fromkeys(("name", "tool_calls", "reasoning_content", "anything"))
    assert sent(messages=[USER, {**message, **nulls}])["messages"] == [USER, message]


def test_tool_calls_stay() -> None:
    assert sent(messages=[USER, CALL, RESULT])["messages"] == [USER, CALL, RESULT]


def test_developer_is_system() -> None:
    body = sent(messages=[{"role": "developer", "content": "Be brief."}, USER])
    assert body["messages"][0] == SYSTEM


# --- media ------------------------------------------------------------------------------------------

METADATA = "http://169.254.169.254/latest/meta-data"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": METADATA}},
        {"type": "image_url", "image_url": METADATA},
        {"image_url": METADATA},  # vLLM takes a part without a type
        {"image_url": {"url": METADATA}},
        {"audio_url": METADATA},
        {"type": "input_image", "image_url": METADATA},
        {"type": "text", "text": "x", "uuid": "1", "image_url": METADATA},
        {"type": "audio_url", "audio_url": {"url": METADATA}},
        {"type": "video_url", "video_url": {"url": METADATA}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "http://["}},
        {"type": "image_url", "image_url": {"url": "http://pics.example@evil.example/x"}},
        {"type": ["image_url"], "image_url": {"url": METADATA}},
    ],
)
def test_remote_media_is_refused(part: dict[str, Any]) -> None:
    text = {"type": "text", "text": "look"}
    with pytest.raises(BadRequest) as caught:
        planned(messages=[USER, {"role": "user", "content": [text, part]}])
    assert caught.value.param == "messages.1.content.1"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        {"type": "image_url", "image_url": {"url": "https://pics.example/a.png"}},
        {"type": "text", "text": METADATA},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
    ],
)
def test_other_media_may_pass(part: dict[str, Any]) -> None:
    assert planned(messages=[{"role": "user", "content": [part]}]).question_index == 0


@pytest.mark.parametrize(("n", "fits"), [(None, True), (128, True), (129, False)])
def test_a_chat_asks_for_so_many_answers(n: int | None, fits: bool) -> None:
    if fits:
        assert planned(n=n).question_index == 0
        return
    with pytest.raises(BadRequest, match="max_choices") as refused:
        planned(n=n)
    assert refused.value.param == "n"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": [[1]] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": [1] * 129}, None),
        ({"prompt": ["a"] * 64, "n": 2}, None),
    ],
)
def test_prompts_times_n_are_bounded(fields: dict[str, Any], param: str | None) -> None:
    if param is None:
        assert planned_text(**fields).store_refs == ()
        return
    with pytest.raises(BadRequest, match="max_choices") as refused:
        planned_text(**fields)
    assert refused.value.param == param


def planned_text(
    headers: dict[str, str] | None = None, defaults: Defaults = DEFAULTS, **fields: Any
) -> Plan:
    body = {"model": "scripted", "prompt": "What is the limit?", **fields}
    return plan(CompletionRequest.model_validate(body), headers or {}, MODELS, defaults)


@pytest.mark.parametrize(
    ("fields", "stores", "chosen_in"),
    [
        ({}, (), None),
        ({"headers": {"x-rag": "on", "x-rag-vector-store": "c", "x-rag-top-k": "?"}}, (), None),
        ({"model": "scripted@d"}, ("d",), "model"),
        ({"model": "gpt-4@d"}, ("d",), "model"),
        ({"model": "org/lora@v2"}, (), None),
        ({"model": "scripted@none"}, (), "model"),
        ({"rag": {}}, ("docs",), None),
        ({"rag": {"enabled": True}}, ("docs",), None),
        ({"rag": {"enabled": False}, "model": "scripted@d"}, (), "rag.enabled"),
        ({"rag": {"vector_store_ids": ["b"]}, "model": "scripted@d"}, ("b",), "rag.vector_store_ids"),
        ({"model": "scripted@d", "headers": {"x-rag": "off"}}, (), "X-RAG"),
        ({"rag": {}, "headers": {"x-rag": "off"}}, ("docs",), None),
        ({"rag": {}, "model": "scripted@none"}, ("docs",), None),
        (
            {"model": "scripted@d", "headers": {"x-rag-vector-store": "c"}},
            ("c",),
            "X-RAG-Vector-Store",
        ),
    ],
)  # fmt: skip
def test_a_text_completion_is_grounded_where_its_model_or_body_says_so(
    fields: dict[str, Any], stores: tuple[str, ...], chosen_in: str | None
) -> None:
    made = planned_text(**fields)
    assert (made.store_refs, made.chosen_in) == (stores, chosen_in)
    assert made.searches == bool(stores)


def test_to_ask_for_sources_without_a_store_to_search() -> None:
    with pytest.raises(BadRequest) as refused:
        planned_text(rag={}, defaults=NO_DEFAULT)
    assert refused.value.param == "rag.vector_store_ids"


@pytest.mark.parametrize(
    ("prompt", "question", "index"),
    [
        ("  Why?\n", "Why?", 0),
        (["Why?"], "Why?", 0),
        (["Why?", "How?"], "", 0),
        ("", "", 0),
        ([], "", None),
        ([1, 2], "", None),
        ([[1], [2]], "", None),
        (None, "", None),
    ],
)
def test_the_question_of_a_prompt(prompt: Any, question: str, index: int | None) -> None:
    made = planned_text(prompt=prompt, rag={"enabled": False})
    assert (made.question, made.question_index, made.also) == (question, index, ())


@pytest.mark.parametrize(("limit", "kept"), [(None, 16), (0, 0), (300, 300), (-1, 0)])
def test_what_the_budget_keeps_for_a_text_completion(limit: int | None, kept: int) -> None:
    assert planned_text(max_tokens=limit).answer_tokens == kept


def test_a_text_completion_is_never_sticky() -> None:
    assert not planned_text(defaults=replace(DEFAULTS, sticky=True)).sticky


def test_a_text_completion_as_the_engine_gets_it() -> None:
    body = {"model": "gpt-4", "prompt": ["a"], "rag": {}, "suffix": None, "request_id": "x",
            "messages": [USER], "echo": True}  # fmt: skip
    made = planned_text(**{key: body[key] for key in ("model", "prompt", "rag")})
    assert text_body(body, made) == {"model": "scripted", "prompt": ["a"], "echo": True}


RULE = Rule(**RoutingSettings(small="scripted", large="org/lora@v2").model_dump())
ROUTING = Models((*MODELS.chat,), MODELS.embedder, {**ALIASES, "mine-*": "auto"}, RULE)


@pytest.mark.parametrize(
    ("rag", "stores"), [({"route": "large"}, ()), ({"route": "large", "enabled": True}, ("docs",))]
)
def test_to_choose_a_route_is_not_to_ask_for_sources(
    rag: dict[str, Any], stores: tuple[str, ...]
) -> None:
    asked = CompletionRequest.model_validate({"model": "auto", "prompt": "Why?", "rag": rag})
    made = plan(asked, {}, ROUTING, DEFAULTS)
    assert (made.engine_model, made.store_refs) == ("org/lora@v2", stores)


def routed(headers: dict[str, str] | None = None, models: Models = ROUTING, **fields: Any) -> Plan:
    request = ChatRequest.model_validate({"model": "auto", "messages": [USER], **fields})
    return plan(request, headers or {}, models, DEFAULTS)


@pytest.mark.parametrize("model", ["auto", "auto@docs", "mine-x", "mine-x@docs"])
def test_auto_is_a_name_like_others(model: str) -> None:
    made = routed(model=model)
    assert (made.model, made.engine_model, made.store_refs) == (model, "scripted", ("docs",))
    assert made.route is not None
    assert made.route.reason == "simple"
    assert routed(model="auto@none").store_refs == ()


def test_auto_needs_routing() -> None:
    with pytest.raises(ModelNotFound) as caught:
        routed(models=MODELS)
    assert "auto" not in str(caught.value).partition("Known")[2]
    with pytest.raises(ModelNotFound, match=r"Known: .*auto"):
        routed(model="nobody")


def test_the_body_s_route_before_the_header_s_before_the_rule_s() -> None:
    assert routed(max_tokens=9999).engine_model == "org/lora@v2"
    header = {"x-rag-route": " Small "}
    assert routed(header, max_tokens=9999).engine_model == "scripted"
    made = routed(header, rag={"route": "large"})
    assert made.engine_model == "org/lora@v2"
    assert made.route is not None
    assert made.route.reason == "requested"
    other = made.fallen_back()
    assert (other.model, other.engine_model) == ("auto", "scripted")


@pytest.mark.parametrize("models", [MODELS, ROUTING])
@pytest.mark.parametrize(
    ("param", "headers", "fields"),
    [
        ("X-RAG-Route", {"x-rag-route": "medium"}, {}),
        ("X-RAG-Route", {"x-rag-route": "small"}, {}),
        ("rag.route", {}, {"rag": {"route": "small"}}),
        ("rag.route", {"x-rag-route": "large"}, {"rag": {"route": "small"}}),
    ],
)
def test_a_route_that_is_none_or_leads_nowhere_is_400(
    models: Models, param: str, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    with pytest.raises(BadRequest) as caught:
        routed(headers, models, model="scripted", **fields)
    assert caught.value.param == param
