"""Perplexity and a greedy sample before and after pruning or training, for the recipes."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import Any

import torch

from hgsp.console.progress import terminal
from hgsp.console.report_schema import AFTER, BEFORE
from hgsp.data.texts import EVALUATE, Text, load_text
from hgsp.evaluation.collapse import before_and_after, collapse_warning, has_collapsed
from hgsp.evaluation.config import CPU_EVAL_WINDOWS, MeasureConfig
from hgsp.evaluation.metrics.ppl import perplexity, window_length, windows_of
from hgsp.evaluation.runner import FAILURES, reason_of
from hgsp.models.tokenizers import check_token_ids

LOG = logging.getLogger("hgsp.evaluation")
PROMPT = "The most important thing about the ocean is that"
SAMPLE_TOKENS = 32
#: Characters that are tokenized to check a text without reading all of it.
CHECKED_CHARACTERS = 1000


class PrePostEvaluation:
    """Measurements of the same texts by the same protocol before and after.

    Texts are read on construction, so that a missing one is refused before anything expensive.
    ``results``: stage -> text -> perplexity with its protocol; ``samples``: stage -> greedy continuation or None.
    """

    def __init__(self, config: MeasureConfig, *, offloaded: bool) -> None:
        self._config = config
        self._offloaded = offloaded
        self._texts = [load_text(name, EVALUATE, config.data_dir) for name in config.evaluation_texts]
        self._max_windows = config.eval_max_windows or None
        self._limited_by_default = False
        self.results: dict[str, dict[str, Any]] = {BEFORE: {}, AFTER: {}}
        self.samples: dict[str, str | None] = {}
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

    def _sample(self, when: str, model: Any, tokenizer: Any) -> str | None:
        """Return a greedy continuation; a failure is a warning and does not stop the recipe."""
        self._failed_samples.pop(when, None)
        try:
            return greedy_sample(model, tokenizer)
        except FAILURES as error:
            self._failed_samples[when] = f"no greedy sample {when}: {reason_of(error)}"
            return None


def continuation(sample: str | None) -> str | None:
    """Return a greedy sample without its prompt."""
    return None if sample is None else sample.removeprefix(PROMPT)


@torch.inference_mode()
def greedy_sample(model: Any, tokenizer: Any, prompt: str = PROMPT, max_new_tokens: int = SAMPLE_TOKENS) -> str:
    """Return the prompt and its greedy continuation."""
    input_ids = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.get_input_embeddings().weight.device)
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    check_token_ids(int(input_ids.max()), num_embeddings, tokenizer, "the prompt")
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(output[0], skip_special_tokens=True))
