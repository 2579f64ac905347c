"""An engine behind a URL: any server that speaks OpenAI's chat, over HTTP."""

from server.engine.upstream.engine import UpstreamEngine, open_upstream
from server.engine.upstream.link import UpstreamOptions

__all__ = ["UpstreamEngine", "UpstreamOptions", "open_upstream"]
