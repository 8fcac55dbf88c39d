"""Models in .gguf files, de-quantised by transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hgsp.environment import install_command
from hgsp.errors import InputError, one_line
from hgsp.models.buffers import make_buffers
from hgsp.models.fusion import unfused
from hgsp.models.refusals import refusing
from hgsp.models.weight_checks import refuse_incomplete_weights, refuse_not_finite, refuse_unplaced_weights


def gguf_config(path: Path) -> Any:
    """Return the config in the file's header, without the quantisation of the file: weights are de-quantised.

    Raises:
        InputError: the packages that read it are missing, or the header cannot be read.
    """
    with _reading(path, "the header of a model"):
        return _plain(AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False))


def load_gguf(path: Path, dtype: torch.dtype) -> Any:
    """Load and de-quantise a model, on the CPU and in eval mode.

    It is rebuilt without traces of the file, since transformers refuses to save a model loaded from GGUF.

    Raises:
        InputError: weights are missing or not finite, there are some that the model has no place for, or the file is
            broken.
    """
    with _reading(path, "the weights of a model"):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        unread = _unread_tensors(path, loaded)
    refuse_incomplete_weights(path, report, loaded.config)
    refuse_unplaced_weights(path, unread, loaded.config)
    refuse_not_finite(f"'{path}'", loaded.named_parameters())
    with torch.device("meta"):
        model = type(loaded)(_plain(loaded.config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    make_buffers(model, "cpu")
    model.tie_weights()
    model.generation_config = loaded.generation_config
    return unfused(model.eval())


def gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer in the file.

    Raises:
        InputError: there is none, or the packages that read it are missing.
    """
    with _reading(path, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    tokenizer.name_or_path = str(path)  # not the folder: other files in it may be another tokenizer's
    return tokenizer


def _plain(config: Any) -> Any:
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _unread_tensors(path: Path, model: Any) -> set[str]:
    """Return names of the file's tensors that became no parameter of the model; transformers does not report them."""
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


@contextmanager
def _reading(path: Path, part: str) -> Iterator[None]:
    """Refuse a file of which the libraries cannot read a part."""

    def refusal(error: BaseException) -> InputError:
        if isinstance(error, ImportError):
            return InputError(
                expected="the packages that read .gguf files", got=one_line(error), remedy=install_command("gguf")
            )
        return InputError(
            expected=f"{part} in '{path}'",
            got=f"{type(error).__name__}: {one_line(error)}",
            remedy="check that the download is complete, or use the folder of the model that it was made from",
        )

    with refusing(refusal):
        yield
