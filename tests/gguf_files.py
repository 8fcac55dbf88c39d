"""GGUF files of tiny models, as the converter of llama.cpp writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf


def write_gguf(model: Any, path: Path, architecture: Any = gguf.MODEL_ARCH.LLAMA, **optional: Any) -> None:
    """Write a model in float32; Llama's queries and keys have their rows interleaved for its rotary layout.

    Args:
        optional: further keys and values, as ``tokenizer_model`` and ``eos_token_id``.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    for name, value in optional.items():
        getattr(writer, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(architecture, len(model.model.layers))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        rows, projection = tensor.numpy(), name.split(".")[-2]
        if projection in heads:
            rows = rows.reshape(heads[projection], 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
