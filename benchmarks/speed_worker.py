#!/usr/bin/env python3
"""One model in one engine, in a process of its own: workloads from standard input, seconds to standard output.

Started by speed.py. It imports no hgsp, so that it runs in the environment of vLLM too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Token ids of prompts; every vocabulary is larger.
LOWEST_ID, HIGHEST_ID = 300, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max_batch", type=int, required=True)
    parser.add_argument("--max_len", type=int, required=True, help="tokens of one sequence")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # engines print to standard output
    begin = time.perf_counter()
    engine = ENGINES[options.engine](options)
    print(json.dumps({"load_seconds": time.perf_counter() - begin}), file=answers, flush=True)
    for line in sys.stdin:
        workload = json.loads(line)
        prompts = random_prompts(workload["batch_size"], workload["prompt_len"])
        measured = engine.prefill(prompts) if workload["phase"] == "prefill" else decode(engine, prompts, workload)
        print(json.dumps(measured), file=answers, flush=True)
    os._exit(0)  # servers hold threads that keep a process alive


def random_prompts(batch_size: int, prompt_len: int) -> list[list[int]]:
    return [[random.randint(LOWEST_ID, HIGHEST_ID) for _ in range(prompt_len)] for _ in range(batch_size)]


def decode(engine: Any, prompts: list[list[int]], workload: dict[str, Any]) -> dict[str, float]:
    return engine.decode(prompts, workload["decode_len"])


class Stopwatch:
    """Wall and CPU seconds of this process, all threads together, between entering and leaving."""

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}


class Transformers:
    """bfloat16 weights, a dynamic cache."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(options.threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16, trust_remote_code=True)
        self.model.eval()

    def prefill(self, prompts: list[list[int]]) -> dict[str, float]:
        ids = self.torch.tensor(prompts)
        with self.torch.inference_mode(), Stopwatch() as watch:
            self.model(ids, use_cache=True, logits_to_keep=1)
        return watch.seconds

    def decode(self, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
        with self.torch.inference_mode():
            output = self.model(self.torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            with Stopwatch() as watch:
                for _ in range(num_tokens):
                    ids = output.logits[:, -1].argmax(-1, keepdim=True)
                    output = self.model(ids, past_key_values=output.past_key_values, logits_to_keep=1)
        return watch.seconds


class LlamaCpp:
    """The server of xllamacpp, as llama-server runs it; its prompt cache separates decoding from the prompt."""

    def __init__(self, options: argparse.Namespace) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = options.model
        params.n_parallel = options.max_batch
        params.n_ctx = options.max_batch * options.max_len
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
        params.warmup = params.fit_params = False
        params.no_extra_bufts = True  # weights repacked for AMX crash on some virtual machines
        params.cache_ram_mib = 0  # no copies of finished prompts
        params.verbosity = 1
        self.server = xllamacpp.Server(params)
        self.pool = ThreadPoolExecutor(options.max_batch)

    def prefill(self, prompts: list[list[int]]) -> dict[str, float]:
        return self._run(prompts, 1)

    def decode(self, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
        self._run(prompts, 1)  # the cache then holds the prompts
        return self._run(prompts, num_tokens)

    def _run(self, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
        settings = {"n_predict": num_tokens, "ignore_eos": True, "samplers": ["top_k"], "top_k": 1}
        requests = [{"prompt": prompt, "id_slot": slot, **settings} for slot, prompt in enumerate(prompts)]
        with Stopwatch() as watch:
            answers = list(self.pool.map(self.server.handle_completions, requests))
        for answer in answers:
            assert answer["usage"]["completion_tokens"] == num_tokens, answer
        return watch.seconds


class Vllm:
    """vLLM in this process; its prefix cache separates decoding from the prompt."""

    def __init__(self, options: argparse.Namespace) -> None:
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(options.threads),
        }
        import vllm

        self.vllm = vllm
        self.engine = vllm.LLM(
            options.model,
            dtype="bfloat16",
            trust_remote_code=True,
            enforce_eager=True,
            enable_prefix_caching=True,
            max_model_len=options.max_len,
            max_num_seqs=options.max_batch,
        )

    def prefill(self, prompts: list[list[int]]) -> dict[str, float]:
        return self._run(prompts, 1)

    def decode(self, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
        self._run(prompts, 1)
        return self._run(prompts, num_tokens)

    def _run(self, prompts: list[list[int]], num_tokens: int) -> dict[str, float]:
        sampling = self.vllm.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        with Stopwatch() as watch:
            self.engine.generate(requests, sampling, use_tqdm=False)
        return watch.seconds


ENGINES = {"transformers": Transformers, "llama.cpp": LlamaCpp, "vllm": Vllm}

if __name__ == "__main__":
    main()
