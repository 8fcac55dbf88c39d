"""llama.cpp on a GGUF file, in a process of its own: a crash of the engine ends that process alone.

Run as a module, it reads a request as JSON from standard input and writes the answer to standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hgsp.errors import NumericalError, one_line

#: Most likely next tokens whose log-probabilities are read.
NUM_LIKELY = 20
_MARK = "hgsp-answer:"


@dataclass(frozen=True)
class EngineAnswer:
    """The engine's view of some texts and token sequences.

    Args:
        tokens: ids of every text, with BOS and EOS where the file says so.
        likely: of every sequence, log-probabilities of the most likely next tokens by id, in natural logarithms.
        generated: ids that follow every sequence greedily.
    """

    tokens: tuple[tuple[int, ...], ...]
    likely: tuple[dict[int, float], ...]
    generated: tuple[tuple[int, ...], ...]


def is_installed() -> bool:
    """Return whether the engine can be run from Python."""
    return find_spec("xllamacpp") is not None


def ask_engine(
    path: Path, texts: Sequence[str], sequences: Sequence[Sequence[int]], num_generated: int = 0
) -> EngineAnswer:
    """Load a file in llama.cpp, on one thread of the CPU, and let it read texts and token sequences.

    Args:
        num_generated: tokens to generate greedily after every sequence.

    Raises:
        NumericalError: the engine refuses the file or crashes.
    """
    request = {
        "path": str(path),
        "texts": list(texts),
        "sequences": [list(sequence) for sequence in sequences],
        "num_generated": num_generated,
    }
    command = [sys.executable, "-m", "hgsp.exports.gguf_engine"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not answers:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[-1])
        raise NumericalError(f"llama.cpp (xllamacpp) cannot run {path.name}: {reason[-300:]}")
    answer = json.loads(answers[-1].removeprefix(_MARK))
    return EngineAnswer(
        tuple(tuple(ids) for ids in answer["tokens"]),
        tuple({int(index): value for index, value in likely.items()} for likely in answer["likely"]),
        tuple(tuple(ids) for ids in answer["generated"]),
    )


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    server = _server_of(request)
    sequences = request["sequences"]
    return {
        "tokens": [_tokenize(server, text) for text in request["texts"]],
        "likely": [_likely(server, sequence) for sequence in sequences],
        "generated": [_generate(server, sequence, request["num_generated"]) for sequence in sequences],
    }


def _server_of(request: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["path"]
    longest = max((len(sequence) for sequence in request["sequences"]), default=0)
    params.n_ctx = max(256, longest + request["num_generated"] + 8)
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # The defaults round keys and values to float16, which hides smaller differences.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = params.fit_params = False
    params.no_extra_bufts = True  # weights repacked for AMX crash on some virtual machines
    params.verbosity = 1
    return xllamacpp.Server(params)


def _tokenize(server: Any, text: str, add_special: bool = True) -> list[int]:
    tokens: list[int] = _post(server, "/tokenize", content=text, add_special=add_special, parse_special=True)["tokens"]
    return tokens


def _likely(server: Any, sequence: list[int]) -> dict[int, float]:
    """Return the most likely next tokens.

    The next token is forced to be a letter: of a token that ends within a UTF-8 character, the engine tells nothing.
    """
    letter = _tokenize(server, "a", add_special=False)[0]
    settings = {"n_predict": 1, "n_probs": NUM_LIKELY, "logit_bias": [[letter, 1e6]]}
    answer = _post(server, "/completion", prompt=sequence, temperature=0, **settings)
    return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}


def _generate(server: Any, sequence: list[int], num_generated: int) -> list[int]:
    if not num_generated:
        return []
    settings = {"n_predict": num_generated, "return_tokens": True}
    tokens: list[int] = _post(server, "/completion", prompt=sequence, temperature=0, **settings)["tokens"]
    return tokens


def _post(server: Any, path: str, **content: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.listening_address}{path}", json.dumps(content).encode(), headers)
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's ports
    with local.open(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


if __name__ == "__main__":
    try:
        print(_MARK + json.dumps(_serve(json.load(sys.stdin))), flush=True)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        sys.exit(one_line(error))
