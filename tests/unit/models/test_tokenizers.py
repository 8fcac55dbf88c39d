"""Tokens without an embedding: added ones are a warning, those that a text holds and base vocabularies are refused."""

import copy
import json

import pytest
import torch

from conftest import VOCAB, make_tiny
from hgsp.data.texts import Text
from hgsp.errors import InputError
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.evaluation.pre_post import greedy_sample
from hgsp.models.loading import inspect_model
from hgsp.models.tokenizers import check_token_ids, check_vocabulary, load_own_tokenizer


@pytest.fixture
def padded(tokenizer):
    """The tokenizer with tokens added for training, as people do without resizing the model."""
    larger = copy.deepcopy(tokenizer)
    larger.add_special_tokens({"pad_token": "[PAD]"})
    larger.add_tokens(["<user>", "<robot>", "<tool>"])
    return larger


def test_added_tokens_without_an_embedding_are_a_warning(tokenizer, padded):
    assert check_vocabulary(VOCAB, tokenizer) == []
    assert check_vocabulary(VOCAB + 4, padded) == []
    (warning,) = check_vocabulary(VOCAB, padded)
    assert "adds 4 tokens" in warning
    assert "([PAD], <user>, <robot>, ...)" in warning


def test_a_base_vocabulary_larger_than_the_embedding_is_refused(padded):
    with pytest.raises(InputError, match=f"at most {VOCAB - 1} tokens.*got {VOCAB} tokens"):
        check_vocabulary(VOCAB - 1, padded)


def test_the_token_that_the_qwen2_tokenizer_adds_is_a_warning(saved):
    """``<|endoftext|>``, whatever tokenizer.json holds."""
    _, warnings = load_own_tokenizer(inspect_model(str(saved(make_tiny("qwen2-14q2kv")))))
    assert "<|endoftext|>" in warnings[0]


def test_a_text_with_such_a_token_is_refused_by_name(padded):
    check_token_ids(VOCAB - 1, VOCAB, padded, "some text")
    with pytest.raises(InputError, match=rf"'<user>', id {VOCAB + 1}, in some text"):
        check_token_ids(VOCAB + 1, VOCAB, padded, "some text")


def test_perplexity_refuses_the_texts_that_hold_such_a_token(padded):
    model, sound = make_tiny("llama-8q4kv"), Text("chat", "test", "chat.txt", "''", "user: hello, robot")
    assert perplexity(model, padded, sound).tokens > 1
    for content in ("<user> hello", "[PAD]" * 3):
        with pytest.raises(InputError, match=r"'(<user>|\[PAD\])', id .* in chat"):
            perplexity(model, padded, Text("chat", "test", "chat.txt", "''", content))


def test_a_greedy_sample_refuses_such_a_token_too(padded):
    assert greedy_sample(make_tiny("llama-8q4kv"), padded, "hello", 4).startswith("hello")
    with pytest.raises(InputError, match="'<robot>'"):
        greedy_sample(make_tiny("llama-8q4kv"), padded, "<robot> hello", 4)


def test_a_task_of_the_harness_refuses_such_a_token(padded, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra hgsp[eval] is not installed")
    from hgsp.evaluation.metrics.harness import load_task, run_task
    from hgsp.evaluation.metrics.lambada import LAMBADA

    file = tmp_path / "lambada" / "lambada_test.jsonl"
    file.parent.mkdir()
    model = make_tiny("llama-8q4kv")
    for text, refused in (("She saw a dog", False), ("She saw <user> a dog", True)):
        file.write_text(json.dumps({"text": text}) + "\n")
        task = load_task(LAMBADA, tmp_path)
        if refused:
            with pytest.raises(InputError, match=r"'<user>'.*lambada_openai: 'She saw <user>"):
                run_task(task, model, padded, batch_size=1, limit=None)
        else:
            assert torch.isfinite(torch.tensor(run_task(task, model, padded, batch_size=1, limit=None)["acc"].value))
