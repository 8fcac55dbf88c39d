"""Tokenizers in GGUF files: rules recognised by their exact form, special tokens, padding."""

import json

import pytest
from tokenizers import normalizers, processors

from conftest import make_tiny
from gguf_tokenizers import RULES, VOCAB_SIZE, byte_level, sentencepiece
from hgsp.errors import InputError
from hgsp.exports.gguf_pretokenizer import splitting_of
from hgsp.exports.gguf_tokenizer import read_vocabulary
from hgsp.exports.source import read_source


def rules_of(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


@pytest.fixture
def folder_with(tmp_path):
    """``folder_with(tokenizer, **config)`` saves a model of 512 embeddings and a tokenizer."""

    def save(tokenizer, **config):
        make_tiny("llama-mqa", **{"vocab_size": 512, **config}).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return save


@pytest.fixture
def vocabulary(folder_with):
    return lambda tokenizer, **config: read_vocabulary(read_source(folder_with(tokenizer, **config)))[0]


@pytest.mark.parametrize("name", RULES)
def test_rules_of_model_families_are_recognised(name):
    found = splitting_of(rules_of(byte_level(name)))
    assert (found.model, found.pre, found.adds_space) == ("gpt2", name, False)
    assert splitting_of(rules_of(byte_level(name, normalizer=normalizers.NFC()))) == found


@pytest.mark.parametrize(
    ("scheme", "adds_space"), [("always", True), ("first", True), ("legacy", True), ("never", False)]
)
def test_sentencepiece_is_recognised(scheme, adds_space):
    found = splitting_of(rules_of(sentencepiece(scheme)))
    assert (found.model, found.adds_space) == ("llama", adds_space)


def edited(name, **changes):
    rules = rules_of(byte_level(name))
    for place, value in changes.items():
        target = rules
        *path, last = place.split("__")
        for key in path:
            target = target[int(key) if key.isdigit() else key]
        target[last] = value
    return rules


@pytest.mark.parametrize(
    "rules",
    [
        edited("llama-bpe", model__ignore_merges=False),
        edited("qwen2", model__ignore_merges=True),
        edited("qwen2", pre_tokenizer__pretokenizers__0__pattern={"Regex": r"\p{L}+"}),
        edited("qwen2", pre_tokenizer__pretokenizers__0__behavior="Removed"),
        edited("gpt-2", pre_tokenizer__use_regex=False),
        edited("gpt-2", pre_tokenizer__add_prefix_space=True),
        edited("smollm", pre_tokenizer__pretokenizers__0__individual_digits=False),
        edited("gpt-2", pre_tokenizer=None),
        edited("gpt-2", normalizer={"type": "Lowercase"}),
        edited("gpt-2", model__type="Unigram"),
        edited("gpt-2", model__byte_fallback=True),
    ],
    ids=range(11),
)
def test_any_other_rule_is_refused_and_never_guessed(rules):
    with pytest.raises(InputError, match="expected a tokenizer of Llama-2, Llama-3"):
        splitting_of(rules)


def test_byte_level_vocabulary(vocabulary):
    tokenizer = byte_level("llama-bpe", adds_bos=True)
    found = vocabulary(tokenizer, eos_token_id=tokenizer.eos_token_id)
    assert len(found.tokens) == len(found.token_types) == 512
    assert found.tokens[:VOCAB_SIZE] == tuple(tokenizer.convert_ids_to_tokens(range(VOCAB_SIZE)))
    assert found.tokens[VOCAB_SIZE] == f"[PAD{VOCAB_SIZE}]"
    assert found.token_types[VOCAB_SIZE:] == ("UNUSED",) * (512 - VOCAB_SIZE)
    assert found.token_types[tokenizer.eos_token_id] == "CONTROL"
    assert found.token_types.count("NORMAL") == VOCAB_SIZE - 2
    assert len(found.merges) == VOCAB_SIZE - 256 - 2
    assert all(len(merge.split(" ")) == 2 for merge in found.merges)
    assert found.scores == ()
    assert found.special_ids == {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    assert (found.adds_bos, found.adds_eos) == (True, False)


def test_sentencepiece_vocabulary(vocabulary):
    tokenizer = sentencepiece()
    found = vocabulary(tokenizer)
    assert found.token_types[:4] == ("UNKNOWN", "CONTROL", "CONTROL", "BYTE")
    assert found.token_types.count("BYTE") == 256
    assert found.merges == ()
    ranks = {"".join(merge): rank for rank, merge in enumerate(rules_of(tokenizer)["model"]["merges"])}
    for token, score in zip(found.tokens, found.scores, strict=True):
        assert score == (-ranks[token] if token in ranks else -1e9)


def test_end_tokens_beside_the_tokenizers_are_end_of_turn(folder_with):
    folder = folder_with(byte_level("qwen2"))
    tokenizer = byte_level("qwen2")
    settings = {"eos_token_id": [tokenizer.eos_token_id, 7, 9]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found, _ = read_vocabulary(read_source(folder))
    assert (found.special_ids["eos"], found.special_ids["eot"], found.special_ids["eom"]) == (
        tokenizer.eos_token_id,
        7,
        9,
    )


def test_chat_template_and_added_tokens(vocabulary):
    tokenizer = byte_level("qwen2")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.add_tokens(["<tool>"])
    found = vocabulary(tokenizer)
    assert found.chat_template == "{{ messages }}"
    assert (found.tokens[VOCAB_SIZE], found.token_types[VOCAB_SIZE]) == ("<tool>", "USER_DEFINED")


def test_a_tokenizer_that_adds_other_tokens_is_refused(vocabulary):
    tokenizer = byte_level("qwen2")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
    )
    with pytest.raises(InputError, match="adds BOS and EOS alone"):
        vocabulary(tokenizer)


def test_a_tokenizer_without_an_end_is_refused(folder_with):
    folder = folder_with(byte_level("qwen2"), eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="a tokenizer with an eos_token"):
        read_vocabulary(read_source(folder))


def test_a_tokenizer_without_merges_is_refused(folder_with, tokenizer):
    tokenizer = json.loads(tokenizer.backend_tokenizer.to_str())
    folder = folder_with(byte_level("gpt-2"))
    tokenizer["pre_tokenizer"]["use_regex"] = True
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="a tokenizer with merges"):
        read_vocabulary(read_source(folder))


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    make_tiny("llama-mqa").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="tokenizer files in"):
        read_vocabulary(read_source(tmp_path))


def test_surplus_added_tokens_are_dropped_with_a_warning(vocabulary):
    tokenizer = byte_level("qwen2")
    tokenizer.add_tokens(["<a>", "<b>"])
    found = vocabulary(tokenizer, vocab_size=VOCAB_SIZE + 1)
    assert found.tokens[-1] == "<a>"
    assert any("<b>" in warning for warning in found.warnings)
