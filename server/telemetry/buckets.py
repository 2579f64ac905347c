"""Which buckets each histogram has, from what was measured.

A histogram's quantile is a guess between two bounds: so each has bounds close together where its values mostly are,
and a few beyond for bad days. Measured on two cores without a GPU: `docs/performance.json` (its scenario `stages`: one
grounded request at a time over 10,000 passages; `search`: 16 callers at once; `off` and `grounded`: 1, 8 and 32 streams
of vLLM), medians in milliseconds:

    plan 1.8, embed 7.4, lexical 1.1, search 4.5, fuse 0.8, pack 2.6, inject 0.015, queue 0.03, prefill 1,900,
    decode 800 for 16 tokens; between two tokens 48 (alone), 70 (of 8); first token 240 to 6,000

Of 400 requests to the scripted engine over a store of four passages, means: plan 1.5, embed 7.6, lexical 0.5, search
5.0, fuse 0.5, pack 0.8, inject 0.011, weave 0.18. Of an ingest of 47 Markdown files: load 0.8, chunk 13, embed 500 (32
chunks), write 36, commit 39. A GPU is taken to prefill in 20 to 500 ms, and to take 5 to 30 ms a token. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

Buckets = tuple[float, ...]

#: Pure functions over a few strings.
_INSTANT: Buckets = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1,
)  # fmt: skip
#: Around a millisecond, in our own memory.
_QUICK: Buckets = (
    0.0001, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5,
)  # fmt: skip
#: Some milliseconds, with another thread or process asked; retrieval ends at `retrieval_timeout_seconds`, 2 s.
_ASKING: Buckets = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.02, 0.04, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip

#: By stage: who embeds for 2 ms and who decodes for 20 s need not share any.
STAGE: Mapping[str, Buckets] = {
    "plan": _ASKING,
    "embed": _ASKING,
    "lexical": _QUICK,
    "search": _ASKING,
    "fuse": _QUICK,
    "rerank": (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5),
    "pack": _ASKING,
    "inject": _INSTANT,
    "queue": (0.00005, 0.0001, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    "prefill": (
        0.005, 0.01, 0.02, 0.04, 0.075, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0,
    ),
    "decode": (
        0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0,
    ),
    "weave": _INSTANT,
}  # fmt: skip
REQUEST: Buckets = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0,
)  # fmt: skip
ADMISSION: Buckets = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
TTFT: Buckets = (
    0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
INTER_TOKEN: Buckets = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0,
)  # fmt: skip
#: A source is 100 to 300 tokens, and `max_context_tokens` is 2,048.
CONTEXT_TOKENS: Buckets = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384)
PROMPT_TOKENS: Buckets = (
    32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 32768, 131072,
)  # fmt: skip
COMPLETION_TOKENS: Buckets = (1, 4, 16, 32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096, 16384)
#: Cosines and fused scores lie in 0..1; what a threshold could cut off matters everywhere in it.
SCORE: Buckets = (
    0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0,
)  # fmt: skip
#: One search, uncached: some milliseconds, and what a slow Chroma makes of them.
CANARY: Buckets = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: A short file is read and cut in less than a millisecond, a book in seconds.
INGEST_STEP: Buckets = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
)  # fmt: skip
