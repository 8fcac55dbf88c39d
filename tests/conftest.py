"""Tiny random models of every geometry, a byte-level tokenizer, and paths to the real ones where they are there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries of the hub are imported, below

import hypothesis
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from hgsp.pipeline import forecast

# Tiny tensors: on a busy machine two threads wait for each other twenty times longer than they compute.
torch.set_num_threads(1)

# Waiting for the disk takes longer than writing a small file, and no test is about a power failure.
os.fsync = lambda _descriptor: None

# One small product of each dtype: no test reads the times that a run forecasts.
forecast.TIMED_S, forecast.TIMED_SIZE = 0.0, 64

# No deadline: the first example pays for first calls, and a slow machine is no failure of a law.
hypothesis.settings.register_profile("laws", deadline=None, max_examples=100)
hypothesis.settings.load_profile("laws")

VOCAB = 256 + 2  # bytes, beginning and end of text
REPOSITORY = Path(__file__).resolve().parent.parent

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "initializer_range": 0.1,
}

#: name -> (model class, config class, what differs). Names say the geometry: query heads over KV heads.
TINY: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama-8q4kv": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}),
    "llama-9q3kv-tied": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "tie_word_embeddings": True,
        },
    ),
    "llama-mha-biased": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama-mqa": (LlamaForCausalLM, LlamaConfig, {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16}),
    "qwen2-14q2kv": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "mistral-8q4kv": (
        MistralForCausalLM,
        MistralConfig,
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "sliding_window": None},
    ),
    "qwen3-8q2kv": (  # eight heads of 16 are more than the hidden size
        Qwen3ForCausalLM,
        Qwen3Config,
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16},
    ),
}

_EIGHT_FOUR = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
_ALTERNATING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_MULTIPLIERS = {
    "embedding_multiplier": 6.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
}
_GRANITE4 = {
    **_EIGHT_FOUR,
    **_MULTIPLIERS,
    "num_local_experts": 0,
    "shared_intermediate_size": 96,
    "layer_types": ["full_attention"] * 3,
    "tie_word_embeddings": True,
}
#: Classes that the oldest supported transformers lacks.
_QWEN3_5 = [getattr(transformers, name, None) for name in ("Qwen3_5ForCausalLM", "Qwen3_5TextConfig")]
_LINEAR = {
    **_EIGHT_FOUR,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

#: Models of the other families, and variants, for test_any_family.py; their windows are shorter than its texts.
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama-3.2": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            **_EIGHT_FOUR,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral-sliding": (MistralForCausalLM, MistralConfig, {**_EIGHT_FOUR, "sliding_window": 8}),
    "ministral": (MinistralForCausalLM, MinistralConfig, {**_EIGHT_FOUR, **_ALTERNATING}),
    "qwen2-sliding": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {**_EIGHT_FOUR, "use_sliding_window": True, "max_window_layers": 1, **_ALTERNATING},
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            **_EIGHT_FOUR,
            **_ALTERNATING,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 1.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {**_EIGHT_FOUR, **_ALTERNATING, "head_dim": 16, "query_pre_attn_scalar": 16},
    ),
    "smollm3": (
        SmolLM3ForCausalLM,
        SmolLM3Config,
        {**_EIGHT_FOUR, **_ALTERNATING, "use_sliding_window": True, "no_rope_layers": [1, 0, 1], "pad_token_id": None},
    ),
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {**_EIGHT_FOUR, "pad_token_id": None}),
    "olmo3": (Olmo3ForCausalLM, Olmo3Config, {**_EIGHT_FOUR, **_ALTERNATING, "pad_token_id": None}),
    "granite": (GraniteForCausalLM, GraniteConfig, {**_EIGHT_FOUR, **_MULTIPLIERS}),
    "granite4": (
        GraniteMoeHybridForCausalLM,
        GraniteMoeHybridConfig,
        {**_GRANITE4, "position_embedding_type": "rope", "intermediate_size": 32},
    ),
    "granite4-nope": (
        GraniteMoeHybridForCausalLM,
        GraniteMoeHybridConfig,
        {**_GRANITE4, "position_embedding_type": "nope", "attention_bias": True},
    ),
    "qwen3.5": (
        *_QWEN3_5,
        {**_LINEAR, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    "qwen3.5-biased": (
        *_QWEN3_5,
        {
            **_LINEAR,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": (Phi3ForCausalLM, Phi3Config, {**_EIGHT_FOUR, "pad_token_id": None}),
    "phi3-sliding": (Phi3ForCausalLM, Phi3Config, {**_EIGHT_FOUR, "pad_token_id": None, "sliding_window": 8}),
    "phi4-mini": (  # generated texts outgrow the original positions
        Phi3ForCausalLM,
        Phi3Config,
        {
            **_EIGHT_FOUR,
            "pad_token_id": None,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 30,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.0, 2.0, 4.0]},
        },
    ),
}
VARIANTS = {name: model for name, model in VARIANTS.items() if model[0] is not None}


def make_tiny(name: str, seed: int = 0, **changes: Any) -> Any:
    """A float32 model with random weights, in eval mode; biases and the norms of queries and keys are random too.

    So are the gains of norms behind a block, around 1 in either of the forms in which families store them.
    """
    model_class, config_class, settings = (TINY | VARIANTS)[name]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**COMMON, **settings, **changes}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif parameter_name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter.normal_(mean=1.0, std=0.3)
            elif name in VARIANTS and parameter_name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@pytest.fixture(params=sorted(TINY))
def tiny(request: pytest.FixtureRequest) -> Any:
    """Every tiny model in turn."""
    return make_tiny(request.param)


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make(name, **config_changes)`` builds one tiny model."""
    return make_tiny


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The byte-level tokenizer of all tiny models."""
    return make_tokenizer()


def make_tokenizer() -> Any:
    """One token per byte, plus BOS and EOS; no padding token, like Llama-3's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)} | {"<s>": 256, "</s>": 257}
    byte_tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    byte_tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokens, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def tokens() -> torch.Tensor:
    """Random token ids [2, 24]."""
    return torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some thousand characters of English that do not repeat."""
    from hgsp.data.texts import CALIBRATE, load_text

    path = tmp_path_factory.mktemp("text") / "english.txt"
    path.write_text(load_text("builtin", CALIBRATE).content[:20_000])
    return path


@pytest.fixture
def saved(tmp_path: Path, tokenizer: Any) -> Callable[..., Path]:
    """``saved(model)`` writes a Hugging Face folder with model and tokenizer and returns it."""

    def save(model: Any, name: str = "dense", **kwargs: Any) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder, **kwargs)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def shared_folder() -> Path | None:
    """The folder with real text and tools that may lie beside the repository."""
    folder = Path(os.environ.get("HGSP_SHARED", REPOSITORY.parent / "shared"))
    return folder if (folder / "data").is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real text samples; tests that need them are skipped where there are none."""
    folder = shared_folder()
    if folder is None:
        pytest.skip("needs ../shared/data (or HGSP_SHARED), which a plain clone does not have")
    return folder / "data"
