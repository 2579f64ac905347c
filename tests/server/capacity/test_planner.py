"""Whole plans: cost, cold start, and what is said when a model does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from server.capacity.architecture import CapacityError
from server.capacity.hardware import GPUS, gpu
from server.capacity.load import Workload
from server.capacity.planner import Subject, fit_problems, plan_capacity
from server.profiles import load_profile


def subject(name: str, *args: str) -> Subject:
    profile = load_profile(name)
    return Subject(name, profile.model, profile.architecture, (*profile.vllm_args, *args))


def test_a_month_by_hand() -> None:
    cost = plan_capacity(subject("qwen3-4b"), gpu("A10G"), Workload()).cost
    assert cost is not None
    second = 0.000306 + 4 * 0.0000131 + 16 * 0.00000222
    assert cost.month_warm == pytest.approx(second * 730 * 3600)
    assert cost.container_hour == pytest.approx(second * 3600)
    # One replica carries one request a second: a thousand answers are a thousand seconds of it.
    assert cost.thousand_answers == pytest.approx(second * 1000)


def test_a_load_beyond_one_replica_takes_more() -> None:
    one = plan_capacity(subject("mistral-7b"), gpu("A10G"), Workload(qps=0.1))
    many = plan_capacity(subject("mistral-7b"), gpu("A10G"), Workload(qps=100, min_containers=0))
    assert one.replicas == 1
    assert many.replicas == pytest.approx(100 / (0.8 * many.highest_qps), abs=1)
    assert many.cost is not None
    assert many.cost.month_warm == 0
    assert many.cost.month_loaded > 10 * (one.cost.month_loaded if one.cost else 0)
    assert many.loaded is not None


def test_the_cold_start_is_the_sum_of_its_steps() -> None:
    steps = dict(plan_capacity(subject("qwen3-8b"), gpu("A10G"), Workload()).cold_start or {})
    total, uncached = steps.pop("total"), steps.pop("total, nothing compiled yet")
    assert total == pytest.approx(sum(steps.values()) - steps["index"])
    assert uncached > total
    assert steps["weights"] == pytest.approx(6.1, rel=0.02)  # gigabytes, at one a second


def test_what_does_not_fit_has_no_speed_and_says_what_to_lower() -> None:
    found = plan_capacity(
        subject("qwen3-4b-bf16", "--max-model-len", "200000"), gpu("A10G"), Workload()
    )
    assert not found.fits
    assert (found.alone, found.cost, found.replicas) == (None, None, 0)
    (problem,) = found.problems
    assert "7.5 GiB of weights" in problem
    assert "27.5 GiB for one request of 200000 tokens" in problem
    assert "--max-model-len" in problem


def test_a_request_beyond_the_window_does_not_fit() -> None:
    found = plan_capacity(subject("tinyllama"), gpu("A10G"), Workload(prompt_tokens=2000))
    assert not found.fits
    assert found.problems == ("prompt and answer are 2200 tokens, and --max-model-len is 2048",)


def test_fp8_is_complained_about_where_it_is_missing() -> None:
    wants = subject("qwen3-4b", "--kv-cache-dtype", "fp8")
    (problem,) = fit_problems(wants, gpu("A10G"))
    assert "sm86" in problem
    assert fit_problems(wants, gpu("L4")) == ()
    weights = replace(
        wants, vllm_args=(), architecture=replace(wants.architecture, quantization="fp8")
    )
    assert (
        "FP8" in fit_problems(replace(weights, vllm_args=("--max-model-len=4096",)), gpu("A10G"))[0]
    )


def test_a_plan_is_json_and_says_that_it_is_predicted() -> None:
    found = json.loads(
        json.dumps(plan_capacity(subject("qwen3-4b"), gpu("L4"), Workload()).as_json())
    )
    assert found["predicted"] is True
    assert found["memory"]["kv_bytes_per_token"] == 147_456
    assert found["tokens_per_second"] == pytest.approx(found["highest_qps"] * 200)


def test_gpus_by_modal_s_names() -> None:
    assert gpu("a10g") is gpu("A10") is gpu("A10G")
    assert gpu("A100").memory_bytes < gpu("a100-80gb").memory_bytes
    with pytest.raises(CapacityError, match="L40S"):
        gpu("RTX")
    assert len({one.name for one in GPUS}) == len(GPUS)
