"""The dense and the pruned model side by side, block by block: the inputs and targets of a reconstruction.

N sequences | B of them in a batch | T tokens | H hidden | S inputs of a pruned output projection
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hgsp.layerwise.hidden_states import HiddenStateCache
from hgsp.models.decoder import Decoder, device_of, watch_inputs
from hgsp.models.modeling_hgsp import added_to_stream
from hgsp.reconstruction.block_fit import BlockBatches, Branch
from hgsp.reconstruction.least_squares import Moments, energy
from hgsp.reconstruction.targets import Streams, Target, normed_target, residual_target

#: One of this many sequences is held out.
HELD_OUT = 8


def num_held_out(num_sequences: int) -> int:
    """Return the number of held-out sequences, which are the last ones."""
    return max(1, num_sequences // HELD_OUT)


class PairedForward:
    """The residual streams of the dense and of the pruned model between two blocks, [N, T, H] each.

    For every block, call ``gather`` and then ``pass_pruned``, or ``pass_dense`` if the pruned model has no such block.
    ``block_energy`` is that of the held-out summands which the last gathered block adds to the dense stream.
    """

    def __init__(self, decoder: Decoder, input_ids_NT: Tensor, batch_size: int, spill_dir: Path | None) -> None:
        embedding = decoder.embedding.weight
        shape = (*input_ids_NT.shape, embedding.shape[1])
        self._decoder, self._spill_dir = decoder, spill_dir
        self._projection_inputs: HiddenStateCache | None = None
        self.block_energy = 0.0
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
        for num_sequences in range(1, batch_size):  # parts of a batch, which ``branch`` is called with
            decoder.embed(input_ids_NT[:num_sequences])

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

    def pass_dense_mlp(self, dense: nn.Module) -> None:
        """Run the MLP of the dense model alone, and measure ``block_energy``."""
        self.block_energy = 0.0
        for batch in self._batches:
            before = self._dense[batch].to(device_of(dense))
            after = self._decoder.call_block(dense, "mlp", before)
            if batch.start >= self._num_fit:
                self.block_energy += energy(after.float() - before.float())
            self._dense[batch] = after.to(self._dense)

    @contextmanager
    def errors(self) -> Iterator[Tensor]:
        """Open an array [N, T, H] of float32 where the hidden states are, removed on exit."""
        shape = self._dense.shape[0], self._dense.shape[1], self._dense.shape[2]
        cache = HiddenStateCache(shape, torch.float32, self._spill_dir, self._decoder.embedding.weight.device)
        try:
            yield cache.open(0)
        finally:
            cache.close()

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
            self._decoder.add_output(pruned, kind, self._pruned[batch], projection(inputs_NTS[batch]))
        del inputs_NTS
        self.drop_inputs()

    def drop_inputs(self) -> None:
        """Drop the inputs kept by ``gather``, which are stale once input projections have changed."""
        if self._projection_inputs is not None:
            self._projection_inputs.close()
            self._projection_inputs = None

    def block_batches(self, kind: str, pruned: Any) -> BlockBatches:
        """Return the inputs and targets of a block of the pruned layer, between ``gather`` and ``pass_pruned``.

        The same block of the dense model must have been run. An MLP gets tokens [B * T, H], attention [B, T, H].
        """
        norm = self._decoder.family.blocks[kind].norm

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            before_BTH = self._pruned[batch].to(device_of(pruned))
            target_BTH = self._dense[batch].to(before_BTH.device).float() - before_BTH.float()
            inputs_BTH = before_BTH if norm is None else pruned.get_submodule(norm)(before_BTH)
            if kind == "attention":
                return inputs_BTH, target_BTH
            return inputs_BTH.flatten(0, 1), target_BTH.flatten(0, 1)

        fit = [batch for batch in self._batches if batch.start < self._num_fit]
        return BlockBatches(read, fit, self._batches[len(fit) :])

    def branch(self, kind: str, pruned: Any) -> Branch:
        """Return a block of the pruned layer as ``fit_block`` trains it."""
        block, decoder = self._decoder.family.blocks[kind], self._decoder
        return Branch(
            getattr(pruned, block.module),
            lambda inputs: decoder.block_arguments(pruned, kind, inputs),
            lambda output: added_to_stream(pruned, block.parts, output),
        )

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
        seen: dict[str, Tensor] = {}
        self.block_energy = 0.0
        with watch_inputs(self._watched(kind, dense, pruned, projection), seen.__setitem__):
            for batch in self._batches:
                before, pruned_before = (stream[batch].to(device_of(dense)) for stream in (self._dense, self._pruned))
                after = self._decoder.call_block(dense, kind, before)
                streams = Streams(before, after, pruned_before, self._decoder.call_block(pruned, kind, pruned_before))
                moments = fit if batch.start < self._num_fit else held_out
                if kept_NTS is not None:
                    kept_NTS[batch] = seen["projection"]
                target = self._target(kind, dense, streams, seen)
                if moments is held_out:
                    self.block_energy += energy(streams.dense_after.float() - streams.dense.float())
                moments.add(seen["projection"], target.error, target.output, target.token_scale)
                self._dense[batch] = after.to(self._dense)  # last, because ``before`` may be a view of it

    def _watched(self, kind: str, dense: nn.Module, pruned: nn.Module, projection: nn.Linear) -> dict[str, nn.Module]:
        """Return the modules whose inputs ``gather`` reads: the projection, and norms of what projections write."""
        post_norm = self._decoder.family.blocks[kind].post_norm
        if post_norm is None:
            return {"projection": projection}
        norms = {name: layer.get_submodule(post_norm) for name, layer in (("dense", dense), ("pruned", pruned))}
        return {"projection": projection, **norms}

    def _target(self, kind: str, dense: Any, streams: Streams, seen: Mapping[str, Tensor]) -> Target:
        post_norm, multiplier = self._decoder.family.blocks[kind].post_norm, self._decoder.residual_multiplier
        if post_norm is None:
            return residual_target(streams, multiplier)
        return normed_target(streams, dense.get_submodule(post_norm), seen["dense"], seen["pruned"], multiplier or 1.0)

    def _pass_block(self, kind: str, module: nn.Module, stream: Tensor) -> None:
        for batch in self._batches:
            stream[batch] = self._decoder.call_block(module, kind, stream[batch].to(device_of(module))).to(stream)


def _keeps_inputs(projection: nn.Linear) -> bool:
    """Return whether inputs are kept for ``pass_pruned``; with a GPU, copying them takes longer than computing them."""
    return device_of(projection).type == "cpu"
