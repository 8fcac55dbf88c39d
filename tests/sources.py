"""Checkpoints without files, for tests of rules and sizes."""

from pathlib import Path

from hgsp.export.source import ExportSource
from hgsp.models.families import FAMILIES
from hgsp.models.geometry import LayerShape

#: The shape of LLaMA-3-8B's layers, but two of them.
DENSE = ((8, 14336), (8, 14336))


def source_of(shapes=DENSE, family="llama", **config):
    """A source of layers given as (KV groups, MLP width); config.json is LLaMA-3-8B's unless it is changed."""
    shapes = tuple(LayerShape(*shape) for shape in shapes)
    model_type = family if len(set(shapes)) == 1 and 0 not in (*shapes[0].__dict__.values(),) else f"hgsp_{family}"
    settings = {
        "model_type": model_type,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": len(shapes),
        "vocab_size": 1024,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "dtype": "bfloat16",
    }
    return ExportSource(Path("folder"), settings | config, FAMILIES[family], shapes, 4, 128)
