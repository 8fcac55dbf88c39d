"""Tokens without an embedding: added ones are a warning, those that a text holds and base vocabularies are refused."""

import copy
import json
from contextlib import suppress

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from conftest import VOCAB, make_tiny
from hgsp.data.texts import Text
from hgsp.errors import InputError
from hgsp.evaluation.metrics.ppl import perplexity
from hgsp.evaluation.pre_post import greedy_sample
from hgsp.models.loading import inspect_model
from hgsp.models.tokenizers import check_token_ids, check_vocabulary, load_own_tokenizer, load_tokenizer


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
    assert "has 4 tokens" in warning
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


def edit_tokenizer_config(folder, **changes):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGED_TOKENIZERS = {
    "no JSON": b"{",
    "a list": b"[]",
    "an object of nothing": b"{}",
    "empty": b"",
    "no UTF-8": b"\xff\xfe",
    "an unknown model": b'{"model": {"type": "none"}, "added_tokens": []}',
    "a merge of unknown tokens": (
        b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}}'
    ),
}


@pytest.mark.parametrize("content", DAMAGED_TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read_is_one_refusal(tokenizer, tmp_path, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(DAMAGED_TOKENIZERS[content])
    with pytest.raises(InputError, match="tokenizer files in") as refusal:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_class": ["x"]},
        {"tokenizer_class": "NoSuchTokenizer", "auto_map": {"AutoTokenizer": ["code.T", None]}},
        {"auto_map": 3},
        {"added_tokens_decoder": {"x": {"content": "<x>"}}},
        {"added_tokens_decoder": [1]},
        {"eos_token": 5},
        {"extra_special_tokens": 1},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_so_is_a_wrong_tokenizer_config(tokenizer, tmp_path, settings):
    """A setting that does no harm is read."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('code of the folder ran')\n")
    edit_tokenizer_config(tmp_path, **settings)
    with suppress(InputError):
        assert load_tokenizer(str(tmp_path))("abc")["input_ids"] == tokenizer("abc")["input_ids"]


@pytest.mark.parametrize("content", [b"[]", b"{", b"null", b"\xff"])
def test_a_tokenizer_config_that_is_no_object_is_refused(tokenizer, tmp_path, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"JSON object in .*tokenizer_config\.json"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["../../../outside", "/outside", "a/b", "..", "c:\\x", 1])
def test_a_chat_template_with_the_name_of_a_path_is_refused(tokenizer, tmp_path, name):
    """Saving writes each template to a file of its name."""
    tokenizer.save_pretrained(tmp_path)
    edit_tokenizer_config(tmp_path, chat_template=[{"name": name, "template": "x"}])
    with pytest.raises(InputError, match="names without separators"):
        load_tokenizer(str(tmp_path))


def test_named_chat_templates_are_read(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    templates = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]
    edit_tokenizer_config(tmp_path, chat_template=templates)
    assert load_tokenizer(str(tmp_path)).chat_template == {"default": "x", "tool_use": "y"}


@pytest.mark.parametrize("key", ["tokenizer_file", "vocab_file", "merges_file"])
def test_files_outside_the_folder_are_not_read(tokenizer, tmp_path, key):
    tokenizer.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "other")
    edit_tokenizer_config(tmp_path / "own", **{key: str(tmp_path / "other/tokenizer.json")})
    with pytest.raises(InputError, match="names without separators"):
        load_tokenizer(str(tmp_path / "own"))


def test_code_of_a_tokenizer_never_runs_and_nobody_is_asked(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "code.py").write_text("raise SystemExit('code of the folder ran')\n")
    edit_tokenizer_config(tmp_path, tokenizer_class="Own", auto_map={"AutoTokenizer": ["code.Own", "code.Own"]})
    with pytest.raises(InputError, match="tokenizer files in"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("largest", [258, 300, 10**6])
def test_an_id_beyond_the_embedding_is_a_warning_until_it_occurs(tokenizer, largest):
    """As many tokens as rows, but one id is larger."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"]["z"] = largest
    gap = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>"
    )
    (warning,) = check_vocabulary(VOCAB, gap)
    assert "(z)" in warning
    check_token_ids(max(gap("abc")["input_ids"]), VOCAB, gap, "a text")
    with pytest.raises(InputError, match=f"'z', id {largest}, in a text"):
        check_token_ids(max(gap("zz")["input_ids"]), VOCAB, gap, "a text")
