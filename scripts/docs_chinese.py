"""Chinese words of the tables in the Chinese pages; numbers and code stay as they are."""

from __future__ import annotations

import re
from pathlib import Path

NUMBER = re.compile(r"\d+(?:\.\d+)*")
#: English -> Chinese, of whole cells and of the parts that cells are made of; ``{}`` is any number.
CHINESE = {
    "Columns are the fraction of the decoder layers' parameters removed.": "各列是剪掉的解码层参数比例。",
    "Fractions are of all parameters, embeddings included.": "比例按全部参数（含嵌入层）计算。",
    "Fractions are of all parameters, embeddings included. Smallest file last.": (
        "比例按全部参数（含嵌入层）计算。文件从大到小排列。"
    ),
    "commit": "提交",
    "{} core": "{} 核",
    "{} cores": "{} 核",
    "{} thread": "{} 线程",
    "{} threads": "{} 线程",
    "dense": "稠密模型",
    "pruned": "剪枝后",
    "removed": "剪枝比例",
    "parameters": "参数量",
    "method": "方法",
    "model": "模型",
    "perplexity": "困惑度",
    "WikiText-2 perplexity": "WikiText-2 困惑度",
    "C4 perplexity": "C4 困惑度",
    # headline
    "SmolLM2-135M-Instruct: the fraction of the decoder layers' parameters removed, WikiText-2 perplexity, and "
    "the speed of models of these sizes as a multiple of the dense model's.": (
        "SmolLM2-135M-Instruct：剪掉的解码层参数比例、WikiText-2 困惑度，以及同样大小的模型相对稠密模型的速度倍数。"
    ),
    "OSSCAR, the best published method here": "OSSCAR（对比中表现最好的已发表方法）",
    "decode, llama.cpp F16": "解码，llama.cpp F16",
    "prefill, llama.cpp F16": "预填充，llama.cpp F16",
    # shapes of models
    "hub id": "Hub ID",
    "query heads, KV heads": "查询头、KV 头",
    "layers": "层数",
    "hidden size, MLP channels per layer": "隐藏维度、每层 MLP 通道数",
    "share in decoder layers": "解码层所占比例",
    "KV groups, MLP channels": "KV 组、MLP 通道总数",
    "perplexity, multiple of the dense model's": "困惑度与稠密模型之比",
    "LLaMA-3-8B, Mistral-7B-v0.3": "LLaMA-3-8B、Mistral-7B-v0.3",
    "GQA ratio": "GQA 比例",
    "KV groups per layer": "每层 KV 组数",
    "parameters of a KV group": "一个 KV 组的参数量",
    "share of its layer": "占所在层的比例",
    "equivalent MLP channels": "相当于多少个 MLP 通道",
    "share of the group in `k_proj` and `v_proj`": "组内 `k_proj` 和 `v_proj` 所占比例",
    "KV-cache bytes saved per token": "每个 token 省下的 KV 缓存（字节）",
    "KV groups kept": "保留的 KV 组",
    "weights": "权重",
    "weights at {}": "剪 {} 之后的权重",
    "KV cache per token, dense": "稠密模型每个 token 的 KV 缓存",
    "KV cache of {} tokens, dense": "稠密模型 {} 个 token 的 KV 缓存",
    "peak of pruning with `--offload`, measured": "用 `--offload` 剪枝的内存峰值（实测）",
    # the study
    "KV cache, bytes per token": "每个 token 的 KV 缓存（字节）",
    "seconds": "耗时（秒）",
    # recovery
    "log-perplexity regained": "对数困惑度恢复",
    "ARC easy, %": "ARC easy（%）",
    "loss on held-out answers": "留出回答的损失",
    "training": "训练耗时",
    "LoRA, distilled": "LoRA，蒸馏",
    "all parameters, distilled": "全参数，蒸馏",
    "{} min": "{} 分钟",
    "30% of the decoder layers' parameters removed.": "剪掉解码层参数的 30%。",
    "Python help perplexity": "Python 帮助文本困惑度",
    "trained on WikiText-2": "用 WikiText-2 训练",
    "trained on Alpaca + WikiText-2 + C4": "用 Alpaca + WikiText-2 + C4 训练",
    "the same in 200 steps of one sequence": "同上，200 步，每步一条序列",
    # quantised models
    "type": "类型",
    "file": "文件大小",
    "{}% pruned": "剪枝 {}%",
    # engines
    "engine": "引擎",
    "reads": "读取",
    "needs": "要求",
    "checked with": "验证版本",
    "the folder": "目录",
    "nothing": "无",
    "{}, CPU": "{}，CPU",
    "{} to {}": "{} 到 {}",
    "source of {}": "{} 的源码",
    "source at 0193dbd": "0193dbd 处的源码",
    "source of optimum": "optimum 的源码",
    "mlx-lm {}, CPU": "mlx-lm {}，CPU",
    "llm-compressor {}, torchao {}, CPU": "llm-compressor {}、torchao {}，CPU",
    "llama.cpp F16, Q8_0": "llama.cpp F16、Q8_0",
    "ONNX, OpenVINO": "ONNX、OpenVINO",
    "GPTQ, AWQ, int4 groups": "GPTQ、AWQ、int4 分组",
    "FP8, int8 per channel": "FP8、int8 逐通道",
    "with trust_remote_code, from {} on": "加 trust_remote_code，{} 及以上",
    "by its Transformers backend": "通过 Transformers 后端",
    "where hgsp is installed, else with --trust-remote-code": "已装 hgsp 时直接读，否则加 --trust-remote-code",
    "in groups of {}; vLLM serves {} bits on GPUs alone": "每 {} 个一组；vLLM 只在 GPU 上支持 {} 位",
    "at any width": "任意宽度",
    "LoRA with default or any target modules, layers that lack one are passed over; not prefix tuning": (
        "支持 LoRA：默认或任意目标模块，跳过缺少该模块的层；不支持前缀微调"
    ),
    "the same sizes in every layer": "各层大小相同",
    "a class of Transformers": "Transformers 自带的模型类",
    "attention in every layer": "每层都有注意力",
    "the same KV groups in every layer": "各层 KV 组数相同",
    "the KV groups of config.json in every layer": "各层 KV 组数与 config.json 一致",
    "no biases (Qwen2)": "没有偏置（Qwen2 有）",
    "no rope scaling": "不使用 RoPE 缩放",
    "a rope type of llama.cpp": "llama.cpp 支持的 RoPE 类型",
    "a block of llama.cpp": "llama.cpp 支持的层结构",
    "a Llama block, with or without norms of queries and keys": "Llama 的层结构，可带查询和键的归一化",
    "a block that its Transformers backend was checked with": "其 Transformers 后端验证过的层结构",
    "a Llama block (no Qwen3)": "Llama 的层结构（Qwen3 不行）",
    "query heads within the hidden size": "查询头总维度不超过隐藏维度",
    "MLP widths in multiples of {}": "MLP 宽度为 {} 的倍数",
    "hidden size and columns of o_proj in multiples of {}": "隐藏维度和 o_proj 的列数为 {} 的倍数",
    "such matrices stay at F16 in a Q8_0 file": "这些矩阵仍以 F16 存放在 Q8_0 文件里",
    "such matrices take more bits, as Q5_0 for Q4_K": "这些矩阵占更多位，如用 Q5_0 代替 Q4_K",
}


def is_chinese(page: Path) -> bool:
    return page.name.endswith(".zh.md")


def said(phrase: str, page: Path) -> str:
    """Return a phrase in the language of the page; one without Chinese words stays as it is."""
    if not is_chinese(page):
        return phrase
    if any_number := CHINESE.get(NUMBER.sub("{}", phrase)):
        return any_number.format(*NUMBER.findall(phrase))
    return CHINESE.get(phrase, phrase)
