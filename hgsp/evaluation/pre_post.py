"""Perplexity and greedy samples before and after pruning or training, for the recipes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from hgsp.console.progress import terminal
from hgsp.console.report_schema import AFTER, BEFORE
from hgsp.data.chat_templates import render_chat
from hgsp.data.texts import EVALUATE, Text, load_text
from hgsp.errors import InputError
from hgsp.evaluation.collapse import before_and_after, collapse_warning, has_collapsed
from hgsp.evaluation.config import CPU_EVAL_WINDOWS, MeasureConfig
from hgsp.evaluation.metrics.ppl import perplexity, window_length, windows_of
from hgsp.evaluation.runner import FAILURES, reason_of
from hgsp.models.tokenizers import check_token_ids

LOG = logging.getLogger("hgsp.evaluation")
PROMPT = "The most important thing about the ocean is that"
#: More prompts for the report, continued in one batch; the last is asked as a chat where the tokenizer has a template.
MORE_PROMPTS = ("Once upon a time, in a village by the sea,", "def fibonacci(n):")
CHAT_PROMPT = "Explain in two sentences why the sky is blue."
SAMPLE_TOKENS = 32
#: Characters that are tokenized to check a text without reading all of it.
CHECKED_CHARACTERS = 1000


class PrePostEvaluation:
    """Measurements of the same texts by the same protocol before and after.

    Texts are read on construction, so that a missing one is refused before anything expensive.
    ``results``: stage -> text -> perplexity with its protocol; ``samples``: stage -> greedy continuation or None, and
    ``prompts``: one entry for each further prompt, with its continuation at every stage.
    """

    def __init__(self, config: MeasureConfig, *, offloaded: bool) -> None:
        self._config = config
        self._offloaded = offloaded
        self._texts = [load_text(name, EVALUATE, config.data_dir) for name in config.evaluation_texts]
        self._max_windows = config.eval_max_windows or None
        self._limited_by_default = False
        self.results: dict[str, dict[str, Any]] = {BEFORE: {}, AFTER: {}}
        self.samples: dict[str, Any] = {}
        self._failed_samples: dict[str, str] = {}
        self.warnings: list[str] = []

    def overlap_warnings(self, used: Text, use: str = "calibrated") -> list[str]:
        """Warn when the model is calibrated, or trained, on a corpus that it is evaluated on."""
        warnings = []
        for text in self._texts:
            if text.content == used.content:
                warnings.append(f"{use} on the evaluation text itself ({text.name}): its PPL is biased low")
            elif text.name == used.name:
                warnings.append(f"{use} and evaluated on the same corpus ({text.name}), different splits")
        return warnings

    def check(self, model_config: Any, tokenizer: Any) -> None:
        """Refuse texts and windows that cannot be measured.

        Raises:
            InputError: a window longer than the model allows, or a text of fewer than two tokens.
        """
        seq_len = window_length(model_config, self._config.eval_seq_len)
        for text in self._texts:
            windows_of(replace(text, content=text.content[:CHECKED_CHARACTERS]), tokenizer, seq_len)

    def num_tokens(self, model_config: Any, device: str) -> int:
        """Estimate the tokens of one measurement, at four characters each."""
        limit = self._config.eval_max_windows
        if limit is None and device == "cpu":
            limit = CPU_EVAL_WINDOWS
        most = limit * window_length(model_config, self._config.eval_seq_len) if limit else None
        lengths = [len(text.content) // 4 for text in self._texts]
        return sum(lengths if most is None else (min(length, most) for length in lengths))

    def before(self, model: Any, tokenizer: Any) -> None:
        """Measure the model that the command was given."""
        if self._config.eval_max_windows is None and model.get_input_embeddings().weight.device.type == "cpu":
            self._max_windows = CPU_EVAL_WINDOWS
            self._limited_by_default = True
        self._measure(BEFORE, model, tokenizer)

    def after(self, model: Any, tokenizer: Any) -> None:
        """Measure the model that the command made, and collect ``warnings``."""
        self._measure(AFTER, model, tokenizer)
        self.warnings = [*self._failed_samples.values()]
        if self._limited_by_default and self._texts:
            self.warnings.append(
                f"on a CPU, PPL covers the first {CPU_EVAL_WINDOWS} windows of each text (--eval_max_windows 0 = all)"
            )
        if has_collapsed(before_and_after(self.results).values()):
            self.warnings.append(collapse_warning())

    def _measure(self, when: str, model: Any, tokenizer: Any) -> None:
        if self._config.skip_evaluation:
            return
        for text in self._texts:
            result = perplexity(
                model,
                tokenizer,
                text,
                seq_len=self._config.eval_seq_len,
                max_windows=self._max_windows,
                progress=terminal,
            )
            self.results[when][text.name] = asdict(result)
            shown, protocol = f"{result.windows} windows of {result.seq_len} tokens", result.protocol()
            LOG.info("%s: PPL %.4f on %s, %s", when, result.ppl, text.name, shown)
            LOG.info("%s: PPL %.4f, %s", when, result.ppl, protocol, extra={"file_only": True})
        self.samples[when] = None if self._offloaded else self._sample(when, model, tokenizer)
        if self.samples[when] is not None:
            LOG.info("%s, greedy: %s", when, self.samples[when])
            self._sample_more(when, model, tokenizer)

    def _sample(self, when: str, model: Any, tokenizer: Any) -> str | None:
        """Return a greedy continuation; a failure is a warning and does not stop the recipe."""
        self._failed_samples.pop(when, None)
        try:
            return greedy_sample(model, tokenizer)
        except FAILURES as error:
            self._failed_samples[when] = f"no greedy sample {when}: {reason_of(error)}"
            return None

    def _sample_more(self, when: str, model: Any, tokenizer: Any) -> None:
        """Add the continuations of further prompts; a failure is a warning."""
        prompts = [(prompt, False) for prompt in MORE_PROMPTS] + [(CHAT_PROMPT, True)] * bool(tokenizer.chat_template)
        try:
            texts = greedy_continuations(model, tokenizer, [_token_ids(tokenizer, *prompt) for prompt in prompts])
        except FAILURES as error:
            self._failed_samples[when] = f"no further greedy samples {when}: {reason_of(error)}"
            return
        known = {entry["prompt"]: entry for entry in self.samples.get("prompts", ())}
        self.samples["prompts"] = [
            {"prompt": prompt, "chat": chat, **known.get(prompt, {}), when: text}
            for (prompt, chat), text in zip(prompts, texts, strict=True)
        ]


def _token_ids(tokenizer: Any, prompt: str, chat: bool) -> list[int]:
    if not chat:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    (text,) = render_chat(tokenizer, messages, [(None, True)], "the sample")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.inference_mode()
def greedy_continuations(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int = SAMPLE_TOKENS
) -> list[str]:
    """Return the greedy continuations of prompts of token ids, padded on the left to one batch.

    Raises:
        InputError: a prompt that fills the positions of the model, or has a token without an embedding.
    """
    embeddings, longest = model.get_input_embeddings().weight, max(map(len, prompts))
    check_token_ids(max(map(max, prompts)), embeddings.shape[0], tokenizer, "a prompt")
    # finished rows are fed this id too, so it needs an embedding; their continuations end before it
    filler = next(
        (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None and i < embeddings.shape[0]), 0
    )
    padding = [longest - len(ids) for ids in prompts]
    input_ids = torch.tensor([[filler] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    output = _generated(model, input_ids.to(embeddings.device), mask.to(embeddings.device), max_new_tokens, filler)
    return [str(tokenizer.decode(row[longest:], skip_special_tokens=True)) for row in output]


def continuation(sample: str | None) -> str | None:
    """Return a greedy sample without its prompt."""
    return None if sample is None else sample.removeprefix(PROMPT)


@torch.inference_mode()
def greedy_sample(model: Any, tokenizer: Any, prompt: str = PROMPT, max_new_tokens: int = SAMPLE_TOKENS) -> str:
    """Return the prompt and its greedy continuation.

    Raises:
        InputError: as ``greedy_continuations``.
    """
    input_ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.get_input_embeddings().weight.device)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    check_token_ids(int(input_ids.max()), num_embeddings, tokenizer, "the prompt")
    filler = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    output = _generated(model, input_ids, torch.ones_like(input_ids), max_new_tokens, filler)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def _generated(model: Any, input_ids_BT: Tensor, mask_BT: Tensor, max_new_tokens: int, filler: int | None) -> Tensor:
    """Continue prompts greedily up to the positions of the model; returns prompts and continuations [B, T + new].

    Of the model folder's generation defaults only the ends of texts are used: ``generate`` fills in a repetition
    penalty or beams from them, also when it is given a generation config.
    """
    length = input_ids_BT.shape[1]
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and length >= limit:
        raise InputError(
            expected=f"a prompt shorter than the model's {limit} positions",
            got=f"{length} tokens",
            remedy="the model has too few positions for a sample",
        )
    defaults = model.generation_config
    model.generation_config = GenerationConfig(bos_token_id=defaults.bos_token_id, eos_token_id=defaults.eos_token_id)
    try:
        output: Tensor = model.generate(
            input_ids_BT,
            attention_mask=mask_BT,
            do_sample=False,
            max_new_tokens=max_new_tokens if limit is None else min(max_new_tokens, limit - length),
            pad_token_id=filler,
        )
    finally:
        model.generation_config = defaults
    return output
