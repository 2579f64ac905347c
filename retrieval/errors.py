"""What can go wrong in retrieval. Messages are written for the person who reads them."""

from __future__ import annotations


class RetrievalError(Exception):
    """The root: whoever calls retrieval needs to catch only this."""


class EmbedderError(RetrievalError):
    """The embedder could not be loaded or could not embed."""


class EmbedderAbsent(EmbedderError):
    """A store needs an embedder that this server could not load."""


class TextTooLong(RetrievalError):
    """What was given to embed is more than may be embedded at once."""


class RerankerError(RetrievalError):
    """The reranker could not be loaded or could not score."""


class StoreUnavailable(RetrievalError):
    """Chroma does not answer, or did not answer in time."""


class IndexMissing(RetrievalError):
    """The store has no index that this server can use: damaged, or another embedder or version made it."""


class DimensionMismatch(RetrievalError):
    """The vectors in the store were made by an embedder of another size."""


class DataDirectoryInUse(RetrievalError):
    """Another process holds the lock on the data directory."""


class DeadlineExceeded(RetrievalError):
    """Retrieval ran past its deadline."""


class UnreadableFile(RetrievalError):
    """A file cannot be turned into text: empty, encrypted, too large, or not what its name says."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def own_copy(error: BaseException) -> BaseException:
    """A copy for one of several waiters, caused by `error`: a shared one would gather all their tracebacks."""
    own = type(error).__new__(type(error), *error.args)
    own.__dict__.update(error.__dict__)
    own.__cause__ = error
    return own
