"""Checkpoints without files, and extreme plans, for tests of exports."""

from pathlib import Path

from hgsp.exports.source import ExportSource
from hgsp.models.families import FAMILIES
from hgsp.models.geometry import LayerShape, geometry_of
from plans import mixed_plan, plan_dropping

#: The shape of LLaMA-3-8B's layers, but two of them.
DENSE = ((8, 14336), (8, 14336))


def source_of(shapes=DENSE, family="llama", **config):
    """A source of layers given as (KV groups, MLP width); config.json is LLaMA-3-8B's unless it is changed."""
    shapes = tuple(LayerShape(*shape) for shape in shapes)
    is_uniform = len(set(shapes)) == 1 and min(shapes[0].num_kv_groups, shapes[0].mlp_width) > 0
    model_type = family if is_uniform else f"hgsp_{family}"
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


def extremes(model):
    """Plans with odd widths, whole layers and blocks gone, and layer 0 without attention, and a uniform one."""
    every = range(geometry_of(model).shapes[0].num_kv_groups)
    width = geometry_of(model).shapes[0].mlp_width
    yield mixed_plan(model)
    yield plan_dropping(model, layers=[1])
    yield plan_dropping(model, kv={0: every}, mlp={2: range(width)})
    yield plan_dropping(model, kv={1: every[1:]}, mlp={0: range(32)})
    yield plan_dropping(
        model, kv={0: [0], 1: [0], 2: [0]} if len(every) > 1 else {}, mlp=dict.fromkeys(range(3), range(32))
    )
