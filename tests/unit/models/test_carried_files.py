"""Tokenizer and generation config keep every byte of the base, unless they were changed or could not be read."""

import json

import pytest
from transformers import AutoTokenizer, GenerationConfig, LlamaTokenizer

from conftest import make_tiny
from hgsp.models import carried_files
from hgsp.models.checkpoint import load_pruned, load_tokenizer_of, save_pruned
from hgsp.models.pruned_bin import BIN_NAME
from hgsp.models.tokenizers import load_tokenizer
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan

MODEL_FILES = {"config.json", "model.safetensors", "modeling_hgsp.py", BIN_NAME}
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.fixture
def base(saved):
    """A model's folder with the tokenizer files of transformers 4 and of other programs, formatted by nobody's code."""
    folder = saved(make_tiny("llama-8q4kv"), "base")
    edit(folder, tokenizer_class="PreTrainedTokenizerFast", is_local=None, local_files_only=None, backend=None)
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(config.replace("\n", "\r\n"), newline="")
    (folder / "special_tokens_map.json").write_text('{"bos_token":"<s>",  "eos_token":"</s>"}')
    (folder / "added_tokens.json").write_text("{ }")
    (folder / "tokenizer.model").write_bytes(b"\x00\x01 sentencepiece")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(f"tools: {TEMPLATE}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [257], "temperature": 0.6,\n "top_p": 0.9}')
    (folder / "notes.txt").write_text("not the tokenizer's")
    return folder


@pytest.fixture
def prune(tmp_path):
    """``prune(base, tokenizer=None, name="pruned")`` saves the pruned model of a folder and returns the result."""

    def prune_and_save(base, tokenizer=None, name="pruned"):
        model = load_pruned(base)
        folder = tmp_path / name
        folder.mkdir()
        save_pruned(apply_plan(model, mixed_plan(model)), tokenizer or load_tokenizer(str(base)), folder)
        return folder

    return prune_and_save


def edit(folder, **changes):
    """Change keys of ``tokenizer_config.json``, None removes them."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def tokenizer_config(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


def contents(folder):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in MODEL_FILES}


def test_every_file_is_carried_over_byte_for_byte(base, prune):
    expected = contents(base)
    del expected["notes.txt"]
    assert contents(prune(base)) == expected


def test_the_bin_and_what_is_saved_from_it_have_the_same_bytes(base, prune, tmp_path):
    """Recovery reads the .bin or the folder, and either may have been moved."""
    folder = prune(base)
    moved = (folder / BIN_NAME).rename(tmp_path / "moved.bin")
    for source in (folder, moved):
        again = tmp_path / f"from_{source.stem}"
        again.mkdir()
        save_pruned(load_pruned(source), load_tokenizer_of(source), again)
        assert contents(again) == contents(folder)


def test_batches_that_were_padded_and_truncated_change_nothing(base, prune):
    tokenizer = load_tokenizer(str(base))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer(["a long text", "short"], padding=True, truncation=True, max_length=4)
    tokenizer.pad_token = None
    folder = prune(base, tokenizer)
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert tokenizer.backend_tokenizer.truncation is not None  # the user's object is as it was


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (
            lambda tokenizer: setattr(tokenizer, "chat_template", "changed"),
            lambda again: again.chat_template == "changed",
        ),
        (lambda tokenizer: tokenizer.add_tokens(["<tool>"]), lambda again: "<tool>" in again.get_vocab()),
        (lambda tokenizer: setattr(tokenizer, "pad_token", "</s>"), lambda again: again.pad_token == "</s>"),
        (lambda tokenizer: setattr(tokenizer, "model_max_length", 77), lambda again: again.model_max_length == 77),
    ],
    ids=["template", "token", "special token", "length"],
)
def test_a_tokenizer_that_the_user_changed_is_saved_as_it_is(base, prune, change, kept):
    tokenizer = load_tokenizer(str(base))
    change(tokenizer)
    folder = prune(base, tokenizer)
    assert kept(AutoTokenizer.from_pretrained(folder))
    assert not {"is_local", "local_files_only"} & set(tokenizer_config(folder))


def test_a_tokenizer_whose_source_is_gone_is_saved(base, prune):
    tokenizer = load_tokenizer(str(base))
    for path in base.glob("*tokeniz*"):
        path.unlink()
    assert AutoTokenizer.from_pretrained(prune(base, tokenizer))("abc")["input_ids"] == tokenizer("abc")["input_ids"]


def test_a_class_of_transformers_5_alone_gets_the_name_that_both_know(saved, prune):
    """The rest of the tokenizer stays; the loader's keys go with the edit."""
    base = saved(make_tiny("llama-8q4kv"), "base")
    assert tokenizer_config(base)["tokenizer_class"] == "TokenizersBackend"
    edit(base, is_local=True, local_files_only=False)
    folder = prune(base)
    expected = tokenizer_config(base) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert tokenizer_config(folder) == {k: v for k, v in expected.items() if k not in ("is_local", "local_files_only")}
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_without_a_class_the_one_that_was_loaded_is_written(base, prune):
    """Else both versions read config.json, and ask about its custom code."""
    edit(base, tokenizer_class=None)
    expected = type(load_tokenizer(str(base))).__name__
    named = tokenizer_config(prune(base))["tokenizer_class"]
    assert named == {"TokenizersBackend": "PreTrainedTokenizerFast"}.get(expected, expected)


def test_a_list_of_extra_tokens_gets_the_key_that_both_read(base, prune):
    """Transformers 4 expects a dict under the newer key, and fails for a list."""
    edit(base, extra_special_tokens=["</s>"])
    config = tokenizer_config(prune(base))
    assert config["additional_special_tokens"] == ["</s>"]
    assert "extra_special_tokens" not in config


def test_the_class_is_edited_where_the_pruned_folder_would_give_other_ids(saved, prune):
    """AutoTokenizer takes Qwen2Tokenizer for a Qwen2 model whatever the file says, but not for a pruned one."""
    base = saved(make_tiny("qwen2-14q2kv"), "base")
    edit(base, tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = load_tokenizer(str(base))
    again = load_tokenizer(str(prune(base)))
    assert type(again) is type(tokenizer)
    assert len(again) == len(tokenizer)


def test_other_class_names_are_kept_if_they_give_the_same_ids(base, prune):
    edit(base, tokenizer_class="LlamaTokenizer")
    assert not isinstance(load_tokenizer(str(base)), LlamaTokenizer)  # it would not read bytes
    assert contents(prune(base))["tokenizer_config.json"] == (base / "tokenizer_config.json").read_bytes()


def test_a_generation_config_that_was_changed_is_written(base, tmp_path):
    model = load_pruned(base)
    model.generation_config.top_p = 0.5
    pruned = tmp_path / "pruned"
    pruned.mkdir()
    save_pruned(model, load_tokenizer(str(base)), pruned, with_bin=False)
    assert GenerationConfig.from_pretrained(pruned).top_p == 0.5
    assert GenerationConfig.from_pretrained(pruned).temperature == 0.6


def test_files_of_a_hub_id_come_from_its_snapshot_without_a_request(base, prune, monkeypatch):
    """All that may belong to the tokenizer was fetched when it was loaded."""

    def snapshot(name, **kwargs):
        assert (name, kwargs) == ("someone/model", {"local_files_only": True})
        return str(base)

    monkeypatch.setattr(carried_files, "snapshot_download", snapshot)
    monkeypatch.setattr(carried_files, "load_tokenizer", lambda _name: load_tokenizer(str(base)))
    tokenizer = load_tokenizer(str(base))
    tokenizer.name_or_path = "someone/model"
    assert contents(prune(base, tokenizer))["tokenizer.model"] == (base / "tokenizer.model").read_bytes()
