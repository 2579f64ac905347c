"""What is predicted of memory, beside what the real engine found."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.bundled import chat_model_flags, prepare_chat_model
from server.capacity.folder import read_folder
from server.capacity.memory import plan_memory
from server.capacity.planner import Subject, limits_on
from server.engine.device import CPU_BLOCK_TOKENS, fit_warnings, this_machine
from server.profiles import load_profile
from server.settings import BUNDLED_CHAT_MODEL, Settings
from tests.engine.real import RealServer

pytestmark = pytest.mark.engine


def model_folder() -> Path:
    return prepare_chat_model(Settings().models_dir, lambda _: None)


def test_room_for_keys_and_values_is_what_vllm_finds(real: RealServer) -> None:
    """Within 3 % of the number that vLLM logs as its KV cache size, both by folder and by profile."""
    vllm = real.services.engine._client.vllm_config  # type: ignore[attr-defined]
    args = (*chat_model_flags(), *real.services.settings.vllm_args)
    machine = this_machine()
    for shape in (read_folder(model_folder()), load_profile("smollm2").architecture):
        limits = limits_on(Subject("smollm2", "", shape, args), machine)
        memory = plan_memory(shape, limits, machine.memory_bytes, limits.max_model_len)
        assert memory.kv_tokens == pytest.approx(vllm.cache_config.kv_cache_size_tokens, rel=0.03)
        assert limits.max_model_len == vllm.model_config.max_model_len
        assert limits.max_num_seqs == vllm.scheduler_config.max_num_seqs
    assert vllm.cache_config.block_size == CPU_BLOCK_TOKENS


def test_this_machine_is_a_cpu_with_its_memory() -> None:
    machine = this_machine()
    assert machine.capability is None
    assert machine.memory_bytes > 2**30


def test_a_model_that_cannot_fit_here_is_warned_of() -> None:
    folder = str(model_folder())
    assert fit_warnings(BUNDLED_CHAT_MODEL, folder, chat_model_flags()) == ()
    (warning,) = fit_warnings(BUNDLED_CHAT_MODEL, folder, ["--kv-cache-memory-bytes=9000G"])
    assert "this CPU" in warning
    assert "--kv-cache-memory-bytes" in warning
    # Known by its profile, before anything is downloaded.
    (warning,) = fit_warnings("x", "Qwen/Qwen3-8B-AWQ", ["--max-model-len=9000000"])
    assert "5.7 GiB of weights" in warning


def test_nothing_is_said_of_what_is_not_known(tmp_path: Path) -> None:
    assert fit_warnings("x", "someone/else", []) == ()
    assert fit_warnings("x", str(tmp_path), []) == ()
    assert fit_warnings("x", str(model_folder()), ["--max-model-len=long"]) == ()
