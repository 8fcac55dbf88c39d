"""The tensors and logits of a pruned model, derived again from the dense model and its plan.

T tokens | H hidden
"""

from __future__ import annotations

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
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.hub import with_revision
from hgsp.models.loaded import LoadedModel, load_for_pruning
from hgsp.models.loading import ModelSource, inspect_model
from hgsp.models.places import HUB_ID
from hgsp.pipeline.verified_folder import DifferenceError, NotAppliedError, VerifiedFolder
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.surgery import Surgery


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
        return load_for_pruning(source, self._dtype, "cpu", offload=_has_safetensors(source.name))

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
        name = self.folder.report["base_model"]
        if not Path(name).expanduser().exists() and not _is_cached(name):
            raise NotAppliedError(f"the dense model {name} is not on this machine; name it with --base_model")
        try:
            return inspect_model(str(Path(name).expanduser()) if Path(name).expanduser().exists() else name)
        except InputError as error:
            raise NotAppliedError(f"the dense model of the report: {error}") from error

    def weights(self) -> str:
        """Compare every tensor that was not refitted with its slice of the dense model, bit by bit.

        Raises:
            DifferenceError: with the first element that differs.
            InputError: the dense model is another one.
            NotAppliedError: it is not at hand, or the folder holds no pruned model.
        """
        dense, refitted = self._dense, self.folder.refitted()
        surgery = Surgery(dense.model, self.folder.plan, read=dense.read)
        kept = [name for name in self.folder.shapes if not name.startswith(refitted or ("/",))]
        try:
            for name in kept:
                expected = surgery.tensor(name).to(getattr(torch, self._dtype))
                self.folder.compare(name, expected, "the dense model")
        except DifferenceError:
            self._refuse_another_model()
            raise
        rest = len(self.folder.shapes) - len(kept)
        names = ", ".join(dict.fromkeys(name.strip(".") for name in refitted))
        return f"{len(kept)} tensors equal it bit by bit" + (f"; {rest} were refitted ({names})" if rest else "")

    def _refuse_another_model(self) -> None:
        made = self.folder.report["scoring"]
        if "weights" not in made or self._dense.identity.is_of(made["weights"], made["dtype"], self._dtype):
            return
        if self.named is None:
            raise NotAppliedError(f"{self.folder.report['base_model']} is another model now")
        raise InputError(
            expected=f"the dense model that {self.folder.path} was pruned from",
            got=f"{self.named.name}, whose weights differ",
            remedy=f"its report names {self.folder.report['base_model']}",
        )

    @torch.inference_mode()
    def logits(self) -> str:
        """Compare log-probabilities with those of the dense model whose dropped groups are masked, both in float32.

        Raises:
            DifferenceError: they differ by more than sums in another order do.
            NotAppliedError: as ``weights``, or some weights were refitted.
        """
        if self.folder.refitted():
            raise NotAppliedError("weights were refitted")
        tokens = check_tokens(self.folder.skeleton.config.vocab_size)
        masked = self._masked_log_probs(tokens)
        sliced = log_probs_of(self.folder.path, self.folder.skeleton.config, tokens)
        difference = (masked - sliced).abs().max().item()
        compared = f"log-probabilities of {len(masked)} tokens, masked dense model beside the sliced one"
        if not difference <= LIMIT:
            raise DifferenceError(f"{compared}: they differ by up to {difference:.3g}")
        return f"{compared}: equal within {difference:.1g}"

    def _masked_log_probs(self, tokens: Tensor) -> Tensor:
        """Return the log-probability of every token but the first, [T-1]; float32 from weights in their own dtype."""
        dense = self._dense.decoder
        model, geometry = dense.model.float(), geometry_of(dense.model)
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
    return not name.endswith(".gguf") and (not Path(name).is_dir() or any(Path(name).glob("*.safetensors")))


def _is_cached(name: str) -> bool:
    """Return whether config and weights of a hub id are in the cache of huggingface_hub."""
    if not HUB_ID.fullmatch(name):
        return False
    plain, revision = with_revision(name)
    cached = [
        isinstance(try_to_load_from_cache(plain, file, **revision), str)
        for file in ("config.json", SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    ]
    return cached[0] and any(cached[1:])
