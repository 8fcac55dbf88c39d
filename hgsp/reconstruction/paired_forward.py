"""The dense and the pruned model walked side by side, block by block: what a reconstruction fits on and judges by.

N sequences | T tokens | H hidden | S inputs a pruned writer keeps | I all of them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hgsp.layerwise.hidden_states import HiddenStateCache
from hgsp.models.decoder import Decoder, device_of, watch_inputs
from hgsp.reconstruction.block_fit import BlockText
from hgsp.reconstruction.least_squares import Moments

#: One of this many sequences judges instead of fitting.
HELD_OUT = 8


def num_held_out(num_sequences: int) -> int:
    """How many sequences, the last ones, judge the ridge."""
    return max(1, num_sequences // HELD_OUT)


class PairedForward:
    """The residual streams of the dense and of the pruned model at one block boundary, [N, T, H] each."""

    def __init__(self, decoder: Decoder, input_ids_NT: Tensor, batch_size: int, spill_dir: Path | None) -> None:
        embedding = decoder.embedding.weight
        shape = (*input_ids_NT.shape, embedding.shape[1])
        self._decoder, self._spill_dir = decoder, spill_dir
        self._writer_inputs: HiddenStateCache | None = None
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
        for hidden_states in [*self._hidden_states, *([self._writer_inputs] if self._writer_inputs else [])]:
            hidden_states.close()

    def pass_layer(self, dense: nn.Module, pruned: nn.Module | None) -> None:
        """A whole layer that is not refitted; the pruned stream stays where it is if the layer is gone."""
        streams = [(dense, self._dense)] + ([] if pruned is None else [(pruned, self._pruned)])
        for module, stream in streams:
            for batch in self._batches:
                stream[batch] = self._decoder.call(module, stream[batch].to(device_of(module))).to(stream)

    def pass_dense(self, kind: str, dense: nn.Module) -> None:
        self._pass_block(kind, dense, self._dense)

    def pass_pruned(self, kind: str, pruned: nn.Module, writer: nn.Linear) -> None:
        """Through a block whose writer was refitted since ``gather``; all in front of it has stayed the same."""
        if self._writer_inputs is None:
            self._pass_block(kind, pruned, self._pruned)
            return
        inputs_NTI = self._writer_inputs.open(0)
        for batch in self._batches:
            self._pruned[batch] += writer(inputs_NTI[batch]).to(self._pruned)
        del inputs_NTI
        self.forget_inputs()

    def forget_inputs(self) -> None:
        """Let go of what the writer read in ``gather``, which no longer holds once the block's readers have changed."""
        if self._writer_inputs is not None:
            self._writer_inputs.close()
            self._writer_inputs = None

    def block_text(self, pruned: Any) -> BlockText:
        """What the MLP of the pruned layer reads and should write, between ``gather`` and ``pass_pruned``."""
        norm = pruned.get_submodule(self._decoder.family.blocks["mlp"].norm)

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            before_BTH = self._pruned[batch].to(device_of(pruned))
            wanted_BTH = self._dense[batch].to(before_BTH.device).float() - before_BTH.float()
            return norm(before_BTH).flatten(0, 1), wanted_BTH.flatten(0, 1)

        fitting = [batch for batch in self._batches if batch.start < self._num_fit]
        return BlockText(read, fitting, self._batches[len(fitting) :])

    def gather(
        self, kind: str, dense: nn.Module, pruned: nn.Module, writer: nn.Linear, fit: Moments, held: Moments
    ) -> None:
        """Moments of the writer's input and the streams' difference after the block; the dense stream passes it."""
        kept_NTI = None
        if _keeps_inputs(writer):
            shape = (*self._pruned.shape[:2], writer.in_features)
            self._writer_inputs = HiddenStateCache(shape, writer.weight.dtype, self._spill_dir, writer.weight.device)
            kept_NTI = self._writer_inputs.open(0)
        seen: list[Tensor] = []
        with watch_inputs({kind: writer}, lambda _name, input_BTI: seen.append(input_BTI)):
            for batch in self._batches:
                before = self._dense[batch].to(device_of(dense))
                after = self._decoder.call_block(dense, kind, before)
                pruned_after = self._decoder.call_block(pruned, kind, self._pruned[batch].to(before.device))
                moments = fit if batch.start < self._num_fit else held
                inputs_BTI = seen.pop()
                if kept_NTI is not None:
                    kept_NTI[batch] = inputs_BTI
                moments.add(inputs_BTI, after.float() - pruned_after.float(), after.float() - before.float())
                self._dense[batch] = after.to(self._dense)  # last: ``before`` may be a view of it

    def _pass_block(self, kind: str, module: nn.Module, stream: Tensor) -> None:
        for batch in self._batches:
            stream[batch] = self._decoder.call_block(module, kind, stream[batch].to(device_of(module))).to(stream)


def _keeps_inputs(writer: nn.Linear) -> bool:
    """Whether a writer's inputs stay until it is refitted; beside a GPU, copying them takes longer than computing."""
    return device_of(writer).type == "cpu"
