"""Refusals of weights that do not belong to the model that ``config.json`` describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.peft_utils import find_adapter_config_file

from hgsp.errors import InputError
from hgsp.models.hub import with_revision
from hgsp.models.places import HUB_ID, is_folder


def refuse_adapter(name: str | Path, *, ask_hub: bool = False) -> None:
    """Refuse a folder or hub id that holds an adapter: peft would apply it to weights it may be merged into already.

    Args:
        ask_hub: look at a hub id too, which takes a request.

    Raises:
        InputError: it has an ``adapter_config.json``, alone or beside a whole model.
    """
    may_hold_one = is_folder(name) or (ask_hub and HUB_ID.fullmatch(str(name)))
    plain, revision = with_revision(name)
    found = find_adapter_config_file(plain, **revision) if may_hold_one else None
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
    """Refuse a model for which transformers initialised weights at random or dropped stored ones.

    Args:
        report: the loading info of ``from_pretrained``.

    Raises:
        InputError: with the number of such weights and the first of them.
    """
    if missing := sorted(map(str, report["missing_keys"])):
        raise incomplete(name, f"{len(missing)} missing, such as {missing[0]}")
    refuse_unplaced_weights(name, map(str, report["unexpected_keys"]), config)


def incomplete(name: str | Path, got: str) -> InputError:
    """Return the error about weights that are missing or have the wrong shape."""
    return InputError(
        expected=f"all weights of the model in '{name}'",
        got=got,
        remedy="check that the download is complete; config.json and the weights belong together",
    )


def refuse_unplaced_weights(name: str | Path, unexpected: Iterable[str], config: Any) -> None:
    """Refuse stored tensors for which the model described by ``config`` has no parameter.

    Two are let through: rotary frequencies, which old checkpoints store and every model computes, and the stored copy
    of a tied head.

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


def refuse_missing_weights(model: Any) -> None:
    """Refuse a model that accelerate did not load completely.

    Raises:
        InputError: some weights are on disk or on the meta device.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            expected="all weights in memory",
            got="weights that accelerate put on disk or left on the meta device",
            remedy="use --offload, which reads one layer at a time, or free memory",
        )


def refuse_own_head(model: Any) -> None:
    """Refuse a head that differs from the embedding although the config ties them.

    transformers 5 would use the head, transformers 4 the embedding.

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


def refuse_not_finite(place: str, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse NaN and infinite weights.

    The norm of a tensor, one fast pass without a copy, is finite only if all values are; one that overflows is looked
    at value by value.

    Args:
        place: where the weights are from.
        weights: names and tensors.

    Raises:
        InputError: with the first such tensor and the number of such values in it.
    """
    for tensor_name, weight in weights:
        if weight.is_meta or not weight.numel() or torch.isfinite(torch.linalg.vector_norm(weight)):
            continue
        finite = torch.isfinite(weight)
        if not finite.all():
            raise InputError(
                expected=f"finite weights in {place}",
                got=f"{int((~finite).sum())} NaN or infinite values in {tensor_name}",
                remedy="download the model again, start from a checkpoint that has not diverged, or use --dtype "
                "bfloat16 where float16 is too small for the values",
            )
