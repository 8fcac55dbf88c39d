"""Log-probabilities and a greedy continuation from an engine, computed in a process of its own (``python -m``)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hgsp.models.configuration_decilm import DeciLMConfig
from hgsp.models.vllm_plugin import register


def from_vllm(
    folder: str, tokens: Sequence[int], num_greedy: int, dtype: str = "float32", model_impl: str = "auto"
) -> dict[str, Any]:
    """Return the log-probability of every token but the first, and the tokens of a greedy continuation.

    Args:
        dtype: of activations, and of weights that are not quantised.
        model_impl: ``transformers`` is vLLM's Transformers backend.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other cost more than they save
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    register()  # else vLLM needs to trust the folders' code
    AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig, exist_ok=True)
    length = len(tokens) + num_greedy + 1
    engine = LLM(
        folder,
        dtype=dtype,
        model_impl=model_impl,
        enforce_eager=True,
        max_model_len=length,
        max_num_batched_tokens=length,  # the start-up runs a batch of that size
        max_num_seqs=1,
    )
    settings = SamplingParams(temperature=0.0, max_tokens=max(num_greedy, 1), prompt_logprobs=0, ignore_eos=True)
    output = engine.generate({"prompt_token_ids": list(tokens)}, settings)[0]
    per_token = zip(output.prompt_logprobs[1:], tokens[1:], strict=True)
    return {
        "log_probs": [found[token].logprob for found, token in per_token],
        "greedy": list(output.outputs[0].token_ids)[:num_greedy],
    }


def from_mlx(folder: str, tokens: Sequence[int], num_greedy: int) -> dict[str, Any]:
    """Return the log-probability of every token but the first, and the tokens of a greedy continuation."""
    from pathlib import Path

    import mlx.core as mx
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    model.set_dtype(mx.float32)
    logits = model(mx.array([list(tokens)]))[0, :-1]
    targets = mx.array(list(tokens[1:]))[:, None]
    log_probs = mx.take_along_axis(logits - mx.logsumexp(logits, axis=-1, keepdims=True), targets, axis=-1)
    steps = generate_step(mx.array(list(tokens)), model, max_tokens=num_greedy) if num_greedy else ()
    return {"log_probs": log_probs[:, 0].tolist(), "greedy": [int(token) for token, _ in steps]}


ENGINES: Mapping[str, Callable[..., dict[str, Any]]] = {"vllm": from_vllm, "mlx_lm": from_mlx}


if __name__ == "__main__":
    for request in json.loads(sys.argv[1]):
        answer = ENGINES[request.pop("engine")](**request)
        print(json.dumps(answer), flush=True)
