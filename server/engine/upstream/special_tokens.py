"""The control tokens of the model families in use: an upstream does not tell its tokenizer's own."""

from __future__ import annotations

#: `<|` alone stands for every token of that form.
KNOWN_SPECIAL_TOKENS = frozenset(
    (
        "<|", "<｜", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
        "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "[INST]", "[/INST]",
        "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>",
        "<tool_call>", "</tool_call>", "<think>", "</think>",
    )
)  # fmt: skip
