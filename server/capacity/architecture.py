"""The shape of a decoder-only transformer, and what its shape costs: elements, bytes, operations. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


class CapacityError(Exception):
    """Something cannot be planned for; the message says what, and what can be."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What a checkpoint holds: elements in floating point, and the bytes of packed (quantised) tensors."""

    float_elements: int
    packed_bytes: int = 0

    def bytes(self, dtype_bytes: int) -> int:
        """Bytes in memory when floating-point tensors are kept in `dtype_bytes` bytes an element."""
        return self.float_elements * dtype_bytes + self.packed_bytes


@dataclass(frozen=True, slots=True)
class Architecture:
    """A transformer with grouped-query attention and a gated MLP: Llama, Mistral, Phi-3, Qwen3.

    `bits` is what a weight of the linear layers takes; below 16 they are quantised in groups of `group_size`,
    each with a 16-bit scale and, with `zero_points`, a zero point of `bits`. Embeddings, head and norms stay
    in floating point. `stored` is what a checkpoint on disk was found to hold; without it the shape says.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int
    tied_embeddings: bool = False
    qk_norm: bool = False
    quantization: str = "none"
    bits: int = 16
    group_size: int = 128
    zero_points: bool = False
    stored: Weights | None = field(default=None)

    @property
    def linear_parameters(self) -> int:
        """Weights of the attention and MLP matrices, which every token is multiplied with."""
        attention = self.hidden_size * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def embedding_parameters(self) -> int:
        """Elements of one table of `vocabulary` rows: the input embeddings, or the head."""
        return self.vocabulary * self.hidden_size

    @property
    def parameters(self) -> int:
        """All of the model's parameters, as its publisher counts them."""
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        norms = self.layers * 2 * self.hidden_size + self.hidden_size
        norms += self.layers * 2 * self.head_dim if self.qk_norm else 0
        return self.linear_parameters + tables + norms

    @property
    def weights(self) -> Weights:
        """What the checkpoint holds."""
        if self.stored is not None:
            return self.stored
        if self.bits >= 16:
            return Weights(self.parameters)
        groups = self.linear_parameters // self.group_size
        zeros = groups if self.zero_points else 0
        packed = (self.linear_parameters + zeros) * self.bits // 8
        return Weights(self.parameters - self.linear_parameters + groups, packed)

    def bytes_read_a_step(self, dtype_bytes: int) -> int:
        """Bytes of weights that one decoding step reads: all but the input table, of which it needs a row."""
        unread = 0 if self.tied_embeddings else self.embedding_parameters * dtype_bytes
        return self.weights.bytes(dtype_bytes) - unread

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of keys and values that a token of context keeps: 2 x layers x KV heads x head size x bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes

    def flops_per_token(self) -> int:
        """Operations of one token through the matrices: two for each weight (Kaplan et al. 2020, section 2.1)."""
        return 2 * self.linear_parameters

    def head_flops(self) -> int:
        """Operations to score the vocabulary for one sampled token."""
        return 2 * self.embedding_parameters

    def attention_flops(self, tokens: int) -> int:
        """Operations of causal attention over a prompt: QK and AV, 2 x 2 x layers x heads x head size x tokens²/2."""
        return 2 * self.layers * self.heads * self.head_dim * tokens * tokens
