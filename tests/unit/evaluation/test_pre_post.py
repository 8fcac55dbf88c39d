"""What a recipe measures before and after: a sample that fails costs nothing else, a collapse is said."""

import copy

import pytest
import torch

from hgsp.errors import InputError
from hgsp.evaluation.collapse import COLLAPSE_FACTOR, before_and_after, has_collapsed
from hgsp.evaluation.config import MeasureConfig
from hgsp.evaluation.pre_post import (
    CHAT_PROMPT,
    MORE_PROMPTS,
    PrePostEvaluation,
    greedy_continuations,
    greedy_sample,
)

QUICK = MeasureConfig(eval_tasks="builtin", eval_seq_len=64, eval_max_windows=1)


def test_a_tokenizer_with_token_type_ids_writes_the_same_sample(make, tokenizer):
    with_types = copy.deepcopy(tokenizer)
    with_types.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in with_types("text")
    measure, model = PrePostEvaluation(QUICK, offloaded=False), make("llama-8q4kv")
    measure.before(model, tokenizer)
    measure.after(model, with_types)
    assert measure.samples["before"] == measure.samples["after"] is not None
    assert measure.warnings == []


def test_a_sample_that_fails_is_a_warning_and_costs_no_measurement(make, tokenizer, monkeypatch):
    measure, model = PrePostEvaluation(QUICK, offloaded=False), make("llama-8q4kv")
    monkeypatch.setattr(model, "generate", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    measure.before(model, tokenizer)
    monkeypatch.undo()
    for _ in range(2):  # as for several ratios
        measure.after(model, tokenizer)
        assert measure.samples["before"] is None
        assert measure.samples["after"] is not None
        (warning,) = measure.warnings
        assert warning.startswith("no greedy sample before: RuntimeError")
    assert measure.results["before"] == measure.results["after"]


@pytest.mark.parametrize(("after", "verdict"), [(COLLAPSE_FACTOR * 10.0, False), (COLLAPSE_FACTOR * 10.0 + 1, True)])
def test_a_collapse_is_a_perplexity_grown_beyond_the_factor(after, verdict):
    measured = {
        "before": {"c4": {"ppl": 10.0}, "ptb": {"ppl": 10.0}},
        "after": {"c4": {"ppl": 10.0}, "ptb": {"ppl": after}},
    }
    assert has_collapsed(before_and_after(measured).values()) is verdict
    assert before_and_after({"after": measured["after"]}) == before_and_after({}) == {}
    assert has_collapsed([]) is None


def test_a_collapsed_model_is_called_so(make, tokenizer):
    measure, model = PrePostEvaluation(QUICK, offloaded=False), make("llama-8q4kv")
    measure.before(model, tokenizer)
    measure.after(model, tokenizer)
    assert measure.warnings == []
    with torch.no_grad():
        model.lm_head.weight.mul_(100)  # random, and sure of it
    measure.after(model, tokenizer)
    (warning,) = measure.warnings
    assert warning.startswith("COLLAPSED")


CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def test_several_prompts_are_continued_and_one_as_a_chat(make, tokenizer):
    chats = copy.deepcopy(tokenizer)
    chats.chat_template = CHAT
    measure, model = PrePostEvaluation(QUICK, offloaded=False), make("llama-8q4kv")
    measure.before(model, chats)
    measure.after(model, chats)
    prompts = measure.samples["prompts"]
    assert [(prompt["prompt"], prompt["chat"]) for prompt in prompts] == [
        *((prompt, False) for prompt in MORE_PROMPTS),
        (CHAT_PROMPT, True),
    ]
    assert all(prompt["before"] == prompt["after"] for prompt in prompts)
    assert measure.warnings == []


def test_a_batch_of_prompts_is_continued_as_each_by_itself(make, tokenizer):
    model = make("llama-8q4kv")
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "a much longer prompt", "and one between")]
    together = greedy_continuations(model, tokenizer, prompts, 12)
    assert together == [greedy_continuations(model, tokenizer, [prompt], 12)[0] for prompt in prompts]
    text = greedy_sample(model, tokenizer, "a much longer prompt", 12)
    assert text == "a much longer prompt" + together[1]


@pytest.mark.parametrize("template", ["{{ raise_exception('no system message') }}", "{% broken"])
def test_a_chat_template_that_fails_is_a_warning(make, tokenizer, template):
    chats = copy.deepcopy(tokenizer)
    chats.chat_template = template
    measure, model = PrePostEvaluation(QUICK, offloaded=False), make("llama-8q4kv")
    measure.before(model, chats)
    measure.after(model, chats)
    assert measure.samples["after"] is not None
    assert "prompts" not in measure.samples
    assert [warning.partition(":")[0] for warning in measure.warnings] == [
        "no further greedy samples before",
        "no further greedy samples after",
    ]


#: Generation defaults that model folders have; none of them may change a measurement.
DEFAULTS = {
    "repetition_penalty": 1.8,
    "num_beams": 4,
    "do_sample": True,
    "temperature": 0.01,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [32, 97, 101, 116],
    "min_new_tokens": 20,
    "max_length": 3,
    "forced_bos_token_id": 5,
    "stop_strings": ["a"],
    "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 3,
    "guidance_scale": 2.0,
    "cache_implementation": "static",
    "output_scores": True,
    "return_dict_in_generate": True,
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_sample_is_greedy_whatever_the_generation_defaults_of_the_folder(name, make, tokenizer):
    model = make("llama-8q4kv")
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "another prompt")]
    expected = greedy_sample(model, tokenizer, "a", 12), greedy_continuations(model, tokenizer, prompts, 12)
    setattr(model.generation_config, name, DEFAULTS[name])
    before = model.generation_config
    assert (greedy_sample(model, tokenizer, "a", 12), greedy_continuations(model, tokenizer, prompts, 12)) == expected
    assert model.generation_config is before


def test_a_sample_still_ends_where_the_folder_ends_texts(make, tokenizer):
    model = make("llama-8q4kv")
    (text,) = greedy_continuations(model, tokenizer, [[97]], 8)
    generated = model.generate(torch.tensor([[97]]), max_new_tokens=8, do_sample=False)[0, 1:]
    model.generation_config.eos_token_id = [257, int(generated[2])]
    (shorter,) = greedy_continuations(model, tokenizer, [[97]], 8)
    assert len(shorter) < len(text)
    assert text.startswith(shorter)


def test_a_sample_respects_the_positions_of_the_model(make, tokenizer):
    model = make("llama-8q4kv", max_position_embeddings=16)
    longest = []
    model.register_forward_pre_hook(
        lambda _, __, named: longest.append(int(named["position_ids"].max())), with_kwargs=True
    )
    greedy_sample(model, tokenizer, "ten tokens")
    greedy_continuations(model, tokenizer, [[97], [97] * 12])
    assert max(longest) == 14  # the last token is predicted and not read
    for prompts in ([[97] * 16], [[97], [97] * 40]):
        with pytest.raises(InputError, match="a prompt shorter than the model's 16 positions"):
            greedy_continuations(model, tokenizer, prompts)


def test_a_model_of_few_positions_is_measured_with_a_warning_about_the_sample(make, tokenizer):
    measure = PrePostEvaluation(MeasureConfig(eval_tasks="builtin", eval_max_windows=1), offloaded=False)
    measure.before(make("llama-8q4kv", max_position_embeddings=16), tokenizer)
    assert measure.samples["before"] is None
    assert measure.results["before"]["builtin"]["seq_len"] == 16


def test_a_chat_template_without_end_is_a_warning(make, tokenizer, monkeypatch):
    chats = copy.deepcopy(tokenizer)
    chats.chat_template = "{{ 'a' * 10**12 }}"
    measure, model = PrePostEvaluation(QUICK, offloaded=False), make("llama-8q4kv")
    measure.before(model, chats)
    measure.after(model, chats)
    assert "512 MiB of memory" in measure.warnings[0]
