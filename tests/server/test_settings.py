"""settings: flags, environment and file; what is wrong stops the start and is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.cli import main
from server.settings import Settings, SettingsError, child_environment, load_settings


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variables and no file but the test's own."""
    import os

    for name in [name for name in os.environ if name.upper().startswith(("GROUNDWIRE_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(flags: dict[str, Any] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    return str(caught.value)


def test_the_defaults_are_safe() -> None:
    settings = load_settings()
    assert (settings.host, settings.port, settings.api_keys) == ("127.0.0.1", 8000, [])
    assert settings.on_error == "skip"
    assert not settings.expose_engine_routes
    assert (
        settings.allowed_origins == settings.allowed_hosts == settings.allowed_media_domains == []
    )


def test_the_bundled_model_s_answers_have_an_end() -> None:
    """It may go on for as long as its window holds, which is minutes on a CPU."""
    assert Settings().resolved_max_tokens == 256
    assert Settings(default_max_tokens=9).resolved_max_tokens == 9
    assert Settings(model="another").resolved_max_tokens is None
    assert Settings(engine="scripted").resolved_max_tokens is None


def test_flags_before_environment_before_file(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "groundwire.toml").write_text("top_k = 5\nport = 1\nrrf_k = 3\n")
    monkeypatch.setenv("GROUNDWIRE_TOP_K", "6")
    monkeypatch.setenv("GROUNDWIRE_PORT", "2")
    settings = load_settings({"top_k": "7"})
    assert (settings.top_k, settings.port, settings.rrf_k) == (7, 2, 3)


def test_a_named_file(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "mine.toml").write_text('api_keys = ["k1", "acme:k2"]\n')
    monkeypatch.setenv("GROUNDWIRE_CONFIG", str(bare / "mine.toml"))
    assert [key.get_secret_value() for key in load_settings().api_keys] == ["k1", "acme:k2"]
    monkeypatch.setenv("GROUNDWIRE_CONFIG", str(bare / "missing.toml"))
    assert "GROUNDWIRE_CONFIG" in refusal()
    assert "missing.toml" in refusal()


def test_lists_and_objects_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDWIRE_API_KEYS", " a , acme:b ,")
    monkeypatch.setenv("GROUNDWIRE_VLLM_ARGS", "--enforce-eager --chat-template '/a b'")
    monkeypatch.setenv("GROUNDWIRE_SCRIPTED", '{"answer": "hi"}')
    settings = load_settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "acme:b"]
    assert settings.vllm_args == ["--enforce-eager", "--chat-template", "/a b"]
    assert settings.scripted["answer"] == "hi"


BAD = [
    ("port", "70000"),
    ("port", "http"),
    ("top_k", "0"),
    ("top_k", "51"),
    ("engine", "llama"),
    ("on_error", "retry"),
    ("min_similarity", "2"),
    ("retrieval_timeout_seconds", "0"),
    ("keep_alive_seconds", "-1"),
    ("max_running", "0"),
    ("max_queued", "-1"),
    ("queue_timeout_seconds", "0"),
    ("max_concurrent_per_key", "0"),
    ("request_timeout_seconds", "0"),
    ("chroma_url", "localhost:8000"),
    ("public_url", "example.com"),
    ("otlp_endpoint", "localhost:4318"),
    ("otlp_endpoint", "http://me:secret@localhost:4318"),
    ("push_seconds", "101"),
    ("trace_ratio", "1.5"),
    ("log_format", "xml"),
    ("log_level", "loud"),
    ("expose_engine_routes", "perhaps"),
    ("embedder_backend", "cuda"),
    ("scripted", "{"),
    ("model_aliases", "gpt"),
    ("routing", "small"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_names_the_field(
    name: str, value: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"GROUNDWIRE_{name.upper()}", value)
    assert name in refusal()
    monkeypatch.delenv(f"GROUNDWIRE_{name.upper()}")
    (bare / "groundwire.toml").write_text(f'{name} = "{value}"\n')
    assert name in refusal()
    (bare / "groundwire.toml").unlink()
    assert name in refusal({name: value})


def test_what_is_wrong_in_a_script_is_named() -> None:
    assert "bogus" in refusal({"scripted": {"bogus": 1}})
    assert "prefill_seconds" in refusal({"scripted": {"prefill_seconds": "soon"}})


def test_an_unknown_setting_is_named(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "topk" in refusal({"topk": 4})
    monkeypatch.setenv("GROUNDWIRE_TOPK", "4")
    assert "GROUNDWIRE_TOPK" in refusal()
    monkeypatch.delenv("GROUNDWIRE_TOPK")
    (bare / "groundwire.toml").write_text("[retrieval]\ntop_k = 4\n")
    assert "retrieval" in refusal()


def test_every_wrong_field_is_named_at_once() -> None:
    message = refusal({"port": "x", "top_k": 0})
    assert "port:" in message
    assert "top_k:" in message


def test_a_broken_file_is_named(bare: Path) -> None:
    (bare / "groundwire.toml").write_text("top_k = \n")
    assert "groundwire.toml" in refusal()


FAR = {"name": "far", "url": "http://far:8000"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"engine": "upstream"}, "needs at least one"),
        ({"engines": [FAR, FAR]}, "two engines are named 'far'"),
        ({"engines": [{**FAR, "name": "vllm"}]}, "two engines are named 'vllm'"),
        ({"routing": {"small": "a"}}, "routing.large"),
        ({"routing": {"small": "a", "large": "a"}}, "must be two models"),
        ({"routing": {"small": "a", "large": "b", "words": [""]}}, "routing.words"),
        ({"routing": {"small": "a", "large": "b", "max_turn": 1}}, "routing.max_turn"),
    ],
)
def test_engines_and_routing_that_do_not_fit_are_named(flags: dict[str, Any], words: str) -> None:
    assert words in refusal(flags)


def test_several_engines_and_a_route_between_them(bare: Path) -> None:
    (bare / "groundwire.toml").write_text(
        '[[engines]]\nname = "far"\nurl = "http://far:8000"\n'
        '[[engines]]\nname = "farther"\nurl = "http://farther:8000/v1"\n'
        '[routing]\nsmall = "a"\nlarge = "b"\nmax_turns = 9\n'
    )
    settings = load_settings()
    assert [engine.url for engine in settings.engines] == [
        "http://far:8000/v1",
        "http://farther:8000/v1",
    ]
    assert settings.routing is not None
    assert (settings.routing.max_turns, settings.routing.max_answer_tokens) == (9, 512)
    assert load_settings({"engine": "upstream", "engines": [{**FAR, "name": "upstream"}]}).engines


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "example.com"])
def test_no_key_no_strangers(host: str) -> None:
    message = refusal({"host": host})
    assert message.startswith("host: ")
    assert "GROUNDWIRE_API_KEYS" in message
    assert Settings(host=host, api_keys=["k"]).host == host


def test_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDWIRE_API_KEYS", "sk-verysecret")
    monkeypatch.setenv("GROUNDWIRE_CATALOG_URL", "postgresql+asyncpg://me:verysecret@localhost/x")
    assert "verysecret" not in repr(load_settings())
    monkeypatch.setenv("GROUNDWIRE_PORT", "x")
    assert "verysecret" not in refusal()


@pytest.mark.parametrize("key", ["acme:", ":", "  ", "acme: "])
def test_an_empty_key_is_refused(key: str) -> None:
    assert "api_keys" in refusal({"api_keys": [key]})


def test_a_key_belongs_to_one_tenant() -> None:
    assert "api_keys" in refusal({"api_keys": ["acme:k", "evil:k"]})


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["serve", "--port", "x"], "port"),
        (["serve", "--engine", "scripted", "--enforce-eager"], "--enforce-eager"),
        (["serve", "--host", "0.0.0.0"], "host"),
    ],
)
def test_the_command_stops_with_the_name(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("groundwire: ")
    assert named in error
    assert "Traceback" not in error


def test_an_unknown_flag_of_another_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["ingest", ".", "--wrong"])
    assert caught.value.code == 2
    assert "--wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    "own", [{"catalog_url": "sqlite+aiosqlite:///c.db"}, {"chroma_url": "http://c"}]
)
def test_a_published_index_has_its_own_catalog_and_vectors(own: dict[str, str]) -> None:
    assert load_settings({"published_dir": "/index"}).published_dir == Path("/index")
    assert "published_dir" in refusal({"published_dir": "/index", **own})


@pytest.mark.parametrize(
    ("endpoint", "variables", "url"),
    [
        (None, {}, None),
        ("http://a:4318/", {}, "http://a:4318/v1/traces"),
        ("http://a/v1/traces", {}, "http://a/v1/traces"),
        (None, {"ENDPOINT": "http://b/otlp/"}, "http://b/otlp/v1/traces"),
        (None, {"ENDPOINT": "http://b", "TRACES_ENDPOINT": "http://c/spans"}, "http://c/spans"),
        ("http://a", {"TRACES_ENDPOINT": "http://c/spans"}, "http://a/v1/traces"),
        (None, {"ENDPOINT": "http://b", "PROTOCOL": "http/protobuf"}, "http://b/v1/traces"),
        (
            None,
            {"ENDPOINT": "http://b", "TRACES_PROTOCOL": "http/protobuf", "PROTOCOL": "grpc"},
            "http://b/v1/traces",
        ),
    ],
)
def test_where_traces_go(
    monkeypatch: pytest.MonkeyPatch,
    endpoint: str | None,
    variables: dict[str, str],
    url: str | None,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    settings = load_settings({} if endpoint is None else {"otlp_endpoint": endpoint})
    assert settings.traces_url == url
    variables = child_environment(settings)
    assert variables.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") == (url and "http/protobuf")


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")]
)
def test_opentelemetry_s_own_switches(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b")
    monkeypatch.setenv(name, value)
    assert load_settings().traces_url is None


def test_a_protocol_that_is_not_spoken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc'"):
        _ = load_settings().traces_url
