"""The tensors and logits of a pruned model, derived again from the dense model and its plan.

T tokens | H hidden
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hgsp.errors import InputError
from hgsp.exports.folder_check import LIMIT, check_tokens, log_probs_of
from hgsp.models.buffers import make_buffers
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.hub import with_revision
from hgsp.models.loaded import LoadedModel, load_for_pruning
from hgsp.models.loading import ModelSource, inspect_model
from hgsp.models.places import exists, is_folder, is_gguf, is_hub_id
from hgsp.pipeline.verified_folder import DifferenceError, NotAppliedError, VerifiedFolder
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.surgery import Surgery


class DenseModelError(InputError):
    """A dense model that the user named and that the folder cannot be compared with."""


@dataclass(frozen=True)
class DenseComparison:
    """The comparison of a pruned folder with its dense model, which is read one layer at a time where it can be.

    ``named`` is the dense model that the user named; without one, that of the report is taken if it is at hand.
    """

    folder: VerifiedFolder
    named: ModelSource | None

    @cached_property
    def _dense(self) -> LoadedModel:
        source = self._source()
        try:
            return load_for_pruning(source, self._dtype, "cpu", offload=_has_safetensors(source.name))
        except InputError as error:
            raise self._unusable(source.name, str(error)) from error

    @property
    def _dtype(self) -> str:
        return str(self.folder.report["environment"]["dtype"])

    def _source(self) -> ModelSource:
        if not self.folder.report:
            raise NotAppliedError("no report of a pruning")
        if self.folder.is_recovered:
            raise NotAppliedError("the model was trained after it was pruned")
        if self.named is not None:
            return self.named
        name = os.path.expanduser(self.folder.report["base_model"])  # noqa: PTH111
        if not exists(name) and not _is_cached(name):
            raise NotAppliedError(f"the dense model {name} is not on this machine; name it with --base_model")
        try:
            return inspect_model(name, dequantize=True)
        except InputError as error:
            raise self._unusable(name, str(error)) from error

    def weights(self) -> str:
        """Compare every tensor that was not refitted with its slice of the dense model, bit by bit.

        Raises:
            DifferenceError: with the first element that differs.
            DenseModelError: the model that the user named is another one, or cannot be loaded.
            InputError: a tensor of the folder cannot be read, or the plan is not one for the dense model.
            NotAppliedError: the one of the report is, or it is not at hand, or the folder holds no pruned model.
        """
        dense, refitted = self._dense, self.folder.refitted()
        kept = [name for name in self.folder.names if not f"{name}.".startswith(refitted or ("/",))]
        try:
            surgery = Surgery(dense.model, self.folder.plan, read=dense.read)
            for name in kept:
                expected = surgery.tensor(name).to(getattr(torch, self._dtype))
                self.folder.compare(name, expected, "the dense model")
        except (DifferenceError, InputError):
            self._refuse_another_model()
            raise
        rest = len(self.folder.names) - len(kept)
        names = list(dict.fromkeys(name.strip(".") for name in refitted))
        shown = ", ".join(names if len(names) < 3 else [names[0], "...", names[-1]])
        return f"{len(kept)} tensors equal it bit by bit" + (f"; {rest} were refitted ({shown})" if rest else "")

    def _refuse_another_model(self) -> None:
        made = self.folder.report["scoring"]
        if "weights" not in made or self._dense.identity.is_of(made["weights"], made["dtype"], self._dtype):
            return
        raise self._unusable(self._source().name, "its weights differ")

    def _unusable(self, name: str, reason: str) -> Exception:
        """Return the error about a dense model: a reason not to apply the check if the user did not name it."""
        if self.named is None:
            return NotAppliedError(f"the dense model {name} of the report cannot be used: {reason}")
        return DenseModelError(
            expected=f"the dense model that {self.folder.path} was pruned from",
            got=f"{name} ({reason})",
            remedy=f"its report names {self.folder.report['base_model']}",
        )

    @torch.inference_mode()
    def logits(self) -> str:
        """Compare log-probabilities with those of the dense model whose dropped groups are masked, both in float32.

        Raises:
            DifferenceError: they differ by more than sums in another order do.
            NotAppliedError: as ``weights``, or some weights were refitted, or no layer has both blocks.
        """
        dense = self._dense
        if self.folder.refitted():
            raise NotAppliedError("weights were refitted")
        if not any(all(keep.shape.block_sizes) for keep in self.folder.plan.layers):
            raise NotAppliedError("no layer has both blocks")
        tokens = check_tokens(self.folder.model.config.vocab_size)
        masked = self._masked_log_probs(dense.decoder, tokens)
        sliced = log_probs_of(self.folder.path, self.folder.model.config, tokens)
        difference = (masked - sliced).abs().max().item()
        compared = f"log-probabilities of {len(masked)} tokens, masked dense model beside the sliced one"
        if not difference <= LIMIT:
            raise DifferenceError(f"{compared}: they differ by up to {difference:.3g}")
        return f"{compared}: equal within {difference:.1g}"

    def _masked_log_probs(self, dense: Decoder, tokens: Tensor) -> Tensor:
        """Return the log-probability of every token but the first, [T-1]; float32 from weights in their own dtype."""
        model, geometry = dense.model.float(), geometry_of(dense.model)
        make_buffers(model, "cpu")
        float32 = Decoder(model, _InFloat32(dense))
        masked = MaskedLayers(float32, geometry, self.folder.plan)
        hidden = float32.embed(tokens[None])
        for index in range(float32.num_layers):
            with masked.layer(index) as layer:
                hidden = float32.call(layer, hidden)
        logits = float32.logits(hidden)[0, :-1]
        return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]


class _InFloat32:
    """Layers of a decoder in float32, wherever their weights come from."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        with self._decoder.layer(index) as module:
            yield module.float()


def _has_safetensors(name: str) -> bool:
    """Return whether the weights can stay in their files; those of hub models are taken to be safetensors."""
    return not is_gguf(name) and (not is_folder(name) or any(Path(name).glob("*.safetensors")))


def _is_cached(name: str) -> bool:
    """Return whether config and weights of a hub id are in the cache of huggingface_hub."""
    if not is_hub_id(name):
        return False
    plain, revision = with_revision(name)
    cached = [
        isinstance(try_to_load_from_cache(plain, file, **revision), str)
        for file in ("config.json", SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    ]
    return cached[0] and any(cached[1:])
