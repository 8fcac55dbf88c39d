"""A model in memory as the lm-eval harness calls it: counts sequences, and items longer than the model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from hgsp.errors import InputError
from hgsp.models.tokenizers import check_token_ids


def language_model(model: Any, tokenizer: Any, batch_size: int, name: str) -> Any:
    """Wrap a model for the harness, with a copy of the tokenizer because the harness adds a padding token.

    Args:
        name: names the task in refusals.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    num_embeddings = model.get_input_embeddings().weight.shape[0]

    class CountingLM(HFLM):  # type: ignore[misc]
        """Advance ``scored`` by one for every sequence, and collect the items that had to be truncated."""

        scored: Iterator[int] = iter(())
        items: Sequence[int] = ()
        truncated: set[int]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            self.items = [request.doc_id for request in requests]
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **named: Any) -> Any:
            for item, (_, context, answer) in zip(self.items, requests, strict=True):
                if len(answer) > self.max_length:
                    raise InputError(
                        expected=f"answers of at most {self.max_length} tokens, the model's positions",
                        got=f"{len(answer)} in item {item} of {name}",
                        remedy="choose another task",
                    )
                if len(context) + len(answer) > self.max_length + 1:  # the last token is not read, only predicted
                    self.truncated.add(item)
            return super()._loglikelihood_tokens(requests, *arguments, **named)

        def tok_encode(self, string: Any, *arguments: Any, **named: Any) -> Any:
            ids = super().tok_encode(string, *arguments, **named)
            check_token_ids(max(ids, default=0), num_embeddings, self.tokenizer, f"{name}: {string!r:.80}")
            return ids

        def _model_call(self, inps: Any, *arguments: Any, **named: Any) -> Any:
            logits = super()._model_call(inps, *arguments, **named)
            for _ in range(len(inps)):
                next(self.scored, None)
            return logits

    lm = CountingLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        backend="causal",
        batch_size=batch_size,
        trust_remote_code=False,
    )
    lm.truncated = set()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from accelerate import Accelerator

        lm.accelerator = Accelerator(cpu=model.device.type == "cpu")
        lm._rank, lm._world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return lm
