"""From what the user names (hub id, folder, .gguf file) to a dense model and tokenizer, refused early."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from hgsp.errors import InputError, one_line
from hgsp.models.decoder import refuse_missing_weights
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.families import check_prunable
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.weight_files import refusal_of_files

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


@dataclass(frozen=True)
class ModelSource:
    """A prunable model that has been looked at but not loaded. ``skeleton`` is the model without data (meta device)."""

    name: str
    config: Any
    skeleton: nn.Module
    geometry: Geometry
    warnings: tuple[str, ...]

    @property
    def is_gguf(self) -> bool:
        return self.name.endswith(".gguf")


def inspect_model(name: str, dtype: str | None = None) -> ModelSource:
    """Read config and geometry; no weights are touched (a .gguf file's header is read).

    Args:
        name: hub id, folder or .gguf file.
        dtype: name of the one that weights will be used in; one that cannot hold them is a warning.

    Raises:
        InputError: not found, unsupported architecture, sliding window, mixture of experts, quantised weights.
    """
    raw, config = _read_config(name)
    warnings = []
    if not name.endswith(".gguf") and raw.get("num_key_value_heads") is None:
        warnings.append("config.json has no num_key_value_heads: taken as multi-head attention (GQA ratio 1)")
    if dtype == "float16" and config.dtype == torch.bfloat16:
        warnings.append("weights stored in bfloat16 are used in float16, whose range is smaller: values may overflow")
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    skeleton.tie_weights()
    if any(layer.self_attn is None or layer.mlp is None for layer in skeleton.model.layers):
        raise InputError(
            expected="attention and MLP in every layer",
            got="a pruned model with layers that lack one",
            remedy="start from the dense model",
        )
    return ModelSource(name, config, skeleton, geometry_of(skeleton), tuple(warnings))


def load_tokenizer(name: str) -> Any:
    """The tokenizer that belongs to a model name. Padding, where it is needed, is by its own token; no resize, ever.

    Raises:
        InputError: there is none.
    """
    if name.endswith(".gguf"):
        return _tokenizer_in_gguf(Path(name))
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(
            expected=f"tokenizer files in '{name}'",
            got=one_line(error),
            remedy="copy the tokenizer files of the model into its folder",
        ) from error


def _tokenizer_in_gguf(path: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except ImportError as error:
        raise _without_gguf(error) from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            expected=f"a tokenizer in '{path}'",
            got=one_line(error),
            remedy="use a .gguf file that holds its tokenizer, or the folder of the model it was made from",
        ) from error


def load_own_tokenizer(source: ModelSource) -> Any:
    """The tokenizer of a model that has been looked at but not loaded.

    Raises:
        InputError: none there, or it belongs to another model.
    """
    tokenizer = load_tokenizer(source.name)
    check_vocabulary(source.config.vocab_size, tokenizer)
    return tokenizer


def check_vocabulary(num_embeddings: int, tokenizer: Any) -> None:
    """Refuse a tokenizer that can produce ids the embedding has no row for.

    Raises:
        InputError: the tokenizer belongs to another model.
    """
    if len(tokenizer) > num_embeddings:
        raise InputError(
            expected=f"a tokenizer of at most {num_embeddings} tokens, the size of the model's embedding",
            got=f"{len(tokenizer)} tokens",
            remedy="pass the tokenizer that belongs to the model",
        )


def check_positions(model_config: Any, flag: str, seq_len: int | None) -> None:
    """Refuse sequences in which the model would see positions it does not have; None fits.

    Raises:
        InputError: they are longer than its positions.
    """
    limit = getattr(model_config, "max_position_embeddings", None)
    if limit is not None and seq_len is not None and seq_len > limit:
        raise InputError(
            expected=f"{flag} of at most {limit}, the model's positions", got=str(seq_len), remedy="use a smaller one"
        )


def load_dense(source: ModelSource, dtype: str, device: str | torch.device | None) -> Any:
    """The whole model in memory, eval mode. ``"auto"`` spreads it over what accelerate finds; None is the CPU.

    Raises:
        InputError: the files are missing or do not hold the model's weights.
    """
    kwargs: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if device == "auto":
        kwargs["device_map"] = "auto"
    if source.is_gguf:
        return _load_gguf(Path(source.name), dtype).to(single_device(device))
    try:
        model = load_complete(source.name, **kwargs)
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(
            expected=f"weights of '{source.name}'", got=one_line(error), remedy="check that the download is complete"
        ) from error
    return model.eval() if device == "auto" else model.to(single_device(device)).eval()


def load_complete(name: str | Path, **kwargs: Any) -> Any:
    """``AutoModelForCausalLM.from_pretrained`` where no weight is ever made up and none is dropped.

    Raises:
        InputError: an adapter is in the folder, a file is broken, or a weight is missing, not in memory, not what
            config.json says, or has no place in the model.
    """
    refuse_adapter(name)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    except (SafetensorError, UnpicklingError, EOFError) as error:
        raise refusal_of_files(Path(name), error) from error
    except RuntimeError as error:
        if "PytorchStreamReader" in str(error):
            raise refusal_of_files(Path(name), error) from error
        if "mismatch" not in str(error):
            raise
        raise _incomplete(name, "some of another shape than config.json says") from error
    refuse_incomplete_weights(name, report, model.config)
    refuse_missing_weights(model)
    refuse_own_head(model)
    return model


def refuse_adapter(name: str | Path) -> None:
    """Refuse a folder or hub id that holds an adapter: peft would apply it on top of weights it may be merged into.

    Raises:
        InputError: it has an ``adapter_config.json``, alone or beside a whole model.
    """
    may_hold_one = Path(name).is_dir() or HUB_ID.fullmatch(str(name))
    found = find_adapter_config_file(str(name)) if may_hold_one else None
    if found is None:
        return
    beside_a_model = (Path(found).parent / "config.json").is_file()
    raise InputError(
        expected=f"a whole model in '{name}'",
        got=f"a model and an adapter ({Path(found).name})" if beside_a_model else f"an adapter ({Path(found).name})",
        remedy="remove adapter_config.json and adapter_model.* if the adapter is merged already, else merge it first"
        if beside_a_model
        else "merge it first (peft: merge_and_unload) and pass the folder of the merged model",
    )


def refuse_incomplete_weights(name: str | Path, report: Mapping[str, Any], config: Any) -> None:
    """Refuse what transformers reports of loading: weights that it made up, or that the model has no place for.

    Raises:
        InputError: with their number and the first of them.
    """
    if missing := sorted(map(str, report["missing_keys"])):
        raise _incomplete(name, f"{len(missing)} missing, such as {missing[0]}")
    refuse_unplaced_weights(name, map(str, report["unexpected_keys"]), config)


def _incomplete(name: str | Path, got: str) -> InputError:
    return InputError(
        expected=f"all weights of the model in '{name}'",
        got=got,
        remedy="check that the download is complete; config.json and the weights belong together",
    )


def refuse_unplaced_weights(name: str | Path, unexpected: Iterable[str], config: Any) -> None:
    """Refuse stored tensors that the model described by ``config`` has no parameter for.

    Rotary frequencies, which old checkpoints store and every model computes, and the stored copy of a tied head are
    let through.

    Raises:
        InputError: with the number of such tensors and the first of them.
    """
    tied = getattr(config, "tie_word_embeddings", False)
    unplaced = sorted(
        key for key in unexpected if not key.endswith("rotary_emb.inv_freq") and not (tied and key == "lm_head.weight")
    )
    if unplaced:
        raise InputError(
            expected=f"only weights that config.json has a place for in '{name}'",
            got=f"{len(unplaced)} more, such as {unplaced[0]}",
            remedy="config.json and the weights belong together: check biases (attention_bias, mlp_bias), the number "
            "of layers and the architecture",
        )


def refuse_own_head(model: Any) -> None:
    """Refuse a head of its own where the config says that it is the embedding: transformers 5 uses it, 4 does not.

    Raises:
        InputError: their values differ.
    """
    head = model.get_output_embeddings()
    if head is None or not getattr(model.config, "tie_word_embeddings", False):
        return
    embedding = model.get_input_embeddings().weight
    if head.weight is not embedding and not torch.equal(head.weight.to(embedding.device), embedding):
        raise InputError(
            expected="the embedding as head, since config.json has tie_word_embeddings",
            got="a head with weights of its own",
            remedy='set "tie_word_embeddings": false in config.json if that head belongs to the model',
        )


def single_device(device: str | torch.device | None) -> torch.device:
    """The device named, the CPU if none is."""
    return torch.device("cpu" if device in (None, "auto") else device)  # type: ignore[arg-type]


def _read_config(name: str) -> tuple[dict[str, Any], Any]:
    """The raw config.json and the config object; what cannot be pruned is refused before its class is built."""
    try:
        if name.endswith(".gguf"):
            config = AutoConfig.from_pretrained(_existing(Path(name)).parent, gguf_file=Path(name).name)
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # the file's own format; weights are de-quantised
            raw = config.to_dict()
            check_prunable(raw)
            return raw, config
        if not HUB_ID.fullmatch(name):
            _existing(Path(name))
        refuse_adapter(name)
        raw, _ = PretrainedConfig.get_config_dict(name)
        if not raw:
            raise OSError("no config.json")
        check_prunable(raw)
        config = AutoConfig.from_pretrained(name)
        check_prunable(config.to_dict())  # with the class's own defaults: Mistral's has a sliding window
        return raw, config
    except ImportError as error:
        raise _without_gguf(error) from error
    except InputError:
        raise
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(
            expected="a model as hub id, local folder with config.json, or .gguf file",
            got=f"'{name}' ({one_line(error)})",
            remedy="check the path, or log in and go online for a hub id",
        ) from error


def _without_gguf(error: ImportError) -> InputError:
    return InputError(
        expected="the packages that read .gguf files", got=one_line(error), remedy="pip install 'hgsp[gguf]'"
    )


def _existing(path: Path) -> Path:
    if not path.exists():
        raise OSError("no such file or folder")
    return path


def _load_gguf(path: Path, dtype: str) -> Any:
    """De-quantise through transformers; the model is rebuilt plain: one loaded from GGUF refuses to be saved."""
    loaded, report = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=DTYPES[dtype], output_loading_info=True
    )
    refuse_incomplete_weights(path, report, loaded.config)
    refuse_unplaced_weights(path, _unread_in_gguf(path, loaded), loaded.config)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.model.rotary_emb = loaded.model.rotary_emb
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return model.eval()


def _unread_in_gguf(path: Path, model: Any) -> set[str]:
    """Names of the file's tensors that became no parameter of the model; transformers reports none of them."""
    import gguf

    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    read = {"rope_freqs.weight"} | ({"output.weight"} if model.config.tie_word_embeddings else set())
    for name, _ in model.named_parameters():
        own, _, suffix = name.rpartition(".")
        read.add(f"{names.get_name(own)}.{suffix}")
    return {tensor.name for tensor in reader.tensors} - read
