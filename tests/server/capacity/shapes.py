"""Shapes and machines that the capacity tests share."""

from __future__ import annotations

from server.capacity.architecture import Architecture
from server.capacity.hardware import Hardware

#: 2 layers x (16x8x2x(2+1) + 3x16x32) = 4,608 weights in matrices; a table has 160; norms 80.
SMALL = Architecture(
    layers=2, hidden_size=16, intermediate_size=32, heads=2, kv_heads=1, head_dim=8, vocabulary=10,
    max_positions=128,
)  # fmt: skip
#: A round machine: everything it does is easy to do by hand.
ROUND = Hardware(
    "round", memory_bytes=10**10, bandwidth=1e6, flops=1e9, capability=(8, 6), dollars_per_second=0.001,
    bandwidth_share=0.5, flops_share=0.5, step_seconds=0.25,
)  # fmt: skip
