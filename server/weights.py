"""Weights from the model hub, fetched before an engine asks for them. The one file that imports huggingface_hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from server.capacity.flags import flag_value

#: What vLLM reads of a repository. Many hold the weights twice more, in other formats.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")
#: Mistral's own copy of the weights beside the sharded ones.
UNWANTED = ("consolidated*", "original/*")


class WeightsError(Exception):
    """A model could not be downloaded; the message says what to do."""


def revision_in(vllm_args: Sequence[str]) -> str | None:
    """The value of vLLM's `--revision` flag; None where it is not given."""
    return flag_value(vllm_args, "revision") or None


def download_weights(model: str, revision: str | None) -> Path:
    """Fetch a model into the hub's cache (`HF_HOME`), where vLLM finds it; what is there is not fetched again.

    Blocks for minutes. Returns the folder. Raises WeightsError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(
            model, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)
        )
    except GatedRepoError as error:
        raise WeightsError(
            f"{model} wants its license accepted: do that on its page, and set HF_TOKEN"
        ) from error
    except HFValidationError as error:
        raise WeightsError(
            f"{model!r} is neither a folder nor a name on the model hub (ORGANISATION/MODEL)"
        ) from error
    except (
        HfHubHTTPError,
        OSError,
    ) as error:  # its own "not in the cache, and offline" is an OSError
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{model} could not be downloaded: {reason[0]}") from error
    return Path(folder)
