"""KL(dense || pruned) of plans without reconstruction, and its gradient with respect to the masks of all groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import Geometry
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.plan import PrunePlan
from hgsp.scoring.statistics import frozen_parameters
from hgsp.search.kl import DivergenceFromDense


class MaskedDivergence:
    """Measures the dense model with the groups that a plan drops masked; a context manager.

    Holds the last hidden states of the dense model, and during a measurement the hidden states between all layers.

    Args:
        decoder: the dense model, in memory or offloaded; it is not changed.
        input_ids: the text to measure on, int64 [N, T].
        batch_size: sequences per call of a layer.
        spill_dir: folder for hidden states; None keeps them in memory.
    """

    def __init__(
        self, decoder: Decoder, geometry: Geometry, input_ids: Tensor, batch_size: int, spill_dir: Path | None
    ) -> None:
        self._decoder, self._geometry, self._input_ids = decoder, geometry, input_ids
        self._batch_size, self._spill_dir = batch_size, spill_dir

    def __enter__(self) -> MaskedDivergence:
        self._divergence = DivergenceFromDense(self._decoder, self._input_ids, self._batch_size, self._spill_dir)
        return self

    def __exit__(self, *_: object) -> None:
        self._divergence.close()

    def of(self, plan: PrunePlan, below: float = math.inf) -> tuple[float, Mapping[tuple[int, int], Tensor] | None]:
        """Return the divergence in nats per token, and the gradients as ``MaskedLayers`` collects them.

        Args:
            below: gradients of a divergence of this much or more are not computed: None.
        """
        masks = MaskedLayers(self._decoder, self._geometry, plan)
        masked = Decoder(self._decoder.model, masks)
        walk = LayerWalk(masked, self._input_ids, self._batch_size, keep_hidden_states=True, spill_dir=self._spill_dir)
        with walk, frozen_parameters(self._decoder.model):
            divergence = self._divergence.per_token(walk)
            if not divergence < below:
                return divergence, None
            for back in walk.backward(self._divergence.with_gradient):
                for _ in back.run([]):
                    pass
        return divergence, masks.gradients
