"""The dense and the pruned model side by side, block by block: the inputs and targets of a reconstruction.

N sequences | B of them in a batch | T tokens | H hidden | S inputs of a pruned output projection
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hgsp.layerwise.hidden_states import HiddenStateCache
from hgsp.models.decoder import Decoder, device_of, watch_inputs
from hgsp.reconstruction.block_fit import BlockBatches
from hgsp.reconstruction.least_squares import Moments

#: One of this many sequences is held out.
HELD_OUT = 8


def num_held_out(num_sequences: int) -> int:
    """Return the number of held-out sequences, which are the last ones."""
    return max(1, num_sequences // HELD_OUT)


class PairedForward:
    """The residual streams of the dense and of the pruned model between two blocks, [N, T, H] each.

    For every block, call ``gather`` and then ``pass_pruned``, or ``pass_dense`` if the pruned model has no such block.
    """

    def __init__(self, decoder: Decoder, input_ids_NT: Tensor, batch_size: int, spill_dir: Path | None) -> None:
        embedding = decoder.embedding.weight
        shape = (*input_ids_NT.shape, embedding.shape[1])
        self._decoder, self._spill_dir = decoder, spill_dir
        self._projection_inputs: HiddenStateCache | None = None
        self._hidden_states = [HiddenStateCache(shape, embedding.dtype, spill_dir, embedding.device) for _ in range(2)]
        self._dense, self._pruned = (hidden_states.open(0) for hidden_states in self._hidden_states)
        self._num_fit = len(input_ids_NT) - num_held_out(len(input_ids_NT))
        self._batches = [
            slice(start, min(start + batch_size, stop))
            for first, stop in ((0, self._num_fit), (self._num_fit, len(input_ids_NT)))
            for start in range(first, stop, batch_size)
        ]
        for batch in self._batches:
            self._dense[batch] = self._pruned[batch] = decoder.embed(input_ids_NT[batch]).to(self._dense)

    def __enter__(self) -> PairedForward:
        return self

    def __exit__(self, *_: object) -> None:
        del self._dense, self._pruned
        self.drop_inputs()
        for hidden_states in self._hidden_states:
            hidden_states.close()

    def pass_layer(self, dense: nn.Module, pruned: nn.Module | None) -> None:
        """Run a whole layer without a refit; None leaves the pruned stream unchanged."""
        streams = [(dense, self._dense)] + ([] if pruned is None else [(pruned, self._pruned)])
        for module, stream in streams:
            for batch in self._batches:
                stream[batch] = self._decoder.call(module, stream[batch].to(device_of(module))).to(stream)

    def pass_dense(self, kind: str, dense: nn.Module) -> None:
        """Run one block of the dense model alone."""
        self._pass_block(kind, dense, self._dense)

    def pass_pruned(self, kind: str, pruned: nn.Module, projection: nn.Linear | None) -> None:
        """Run one block of the pruned model, whose output projection may be another one than in ``gather``.

        None is a block that was not gathered.
        """
        if projection is None or self._projection_inputs is None:
            self._pass_block(kind, pruned, self._pruned)
            return
        inputs_NTS = self._projection_inputs.open(0)
        for batch in self._batches:
            self._pruned[batch] += projection(inputs_NTS[batch]).to(self._pruned)
        del inputs_NTS
        self.drop_inputs()

    def drop_inputs(self) -> None:
        """Drop the inputs kept by ``gather``, which are stale once input projections have changed."""
        if self._projection_inputs is not None:
            self._projection_inputs.close()
            self._projection_inputs = None

    def mlp_batches(self, pruned: Any) -> BlockBatches:
        """Return the inputs and targets of the pruned layer's MLP, between ``gather`` and ``pass_pruned``."""
        norm = pruned.get_submodule(self._decoder.family.blocks["mlp"].norm)

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            before_BTH = self._pruned[batch].to(device_of(pruned))
            target_BTH = self._dense[batch].to(before_BTH.device).float() - before_BTH.float()
            return norm(before_BTH).flatten(0, 1), target_BTH.flatten(0, 1)

        fit = [batch for batch in self._batches if batch.start < self._num_fit]
        return BlockBatches(read, fit, self._batches[len(fit) :])

    def gather(
        self, kind: str, dense: nn.Module, pruned: nn.Module, projection: nn.Linear, fit: Moments, held_out: Moments
    ) -> None:
        """Add the moments of the pruned output projection, and run the block of the dense model."""
        kept_NTS = None
        if _keeps_inputs(projection):
            shape = (*self._pruned.shape[:2], projection.in_features)
            weight = projection.weight
            self._projection_inputs = HiddenStateCache(shape, weight.dtype, self._spill_dir, weight.device)
            kept_NTS = self._projection_inputs.open(0)
        seen: list[Tensor] = []
        with watch_inputs({kind: projection}, lambda _name, inputs_BTS: seen.append(inputs_BTS)):
            for batch in self._batches:
                before = self._dense[batch].to(device_of(dense))
                after = self._decoder.call_block(dense, kind, before)
                pruned_after = self._decoder.call_block(pruned, kind, self._pruned[batch].to(before.device))
                moments = fit if batch.start < self._num_fit else held_out
                inputs_BTS = seen.pop()
                if kept_NTS is not None:
                    kept_NTS[batch] = inputs_BTS
                moments.add(inputs_BTS, after.float() - pruned_after.float(), after.float() - before.float())
                self._dense[batch] = after.to(self._dense)  # last, because ``before`` may be a view of it

    def _pass_block(self, kind: str, module: nn.Module, stream: Tensor) -> None:
        for batch in self._batches:
            stream[batch] = self._decoder.call_block(module, kind, stream[batch].to(device_of(module))).to(stream)


def _keeps_inputs(projection: nn.Linear) -> bool:
    """Return whether inputs are kept for ``pass_pruned``; with a GPU, copying them takes longer than computing them."""
    return device_of(projection).type == "cpu"
