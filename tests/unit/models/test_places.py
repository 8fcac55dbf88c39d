"""The file system says what a path is: suffixes decide nothing."""

import shutil

import pytest
import torch

from conftest import make_tiny
from hgsp.errors import InputError
from hgsp.models.checkpoint import config_of, load_pruned, load_tokenizer_of, save_pruned
from hgsp.models.hub import with_revision
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.places import is_bin, is_folder, is_gguf, is_hub_id
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan


@pytest.mark.parametrize("name", ["p20.pt", "llama.gguf", "model.safetensors"])
def test_a_folder_is_a_folder_whatever_its_name_is(saved, tokens, name):
    model = make_tiny("llama-8q4kv")
    folder = str(saved(model, name))
    assert is_folder(folder)
    assert not any(known(folder) for known in (is_gguf, is_bin, is_hub_id))
    source = inspect_model(folder)
    assert not source.is_gguf
    for loaded in (load_dense(source, "float32", "cpu"), load_pruned(folder)):
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert len(load_tokenizer_of(folder)) == 258


@pytest.mark.parametrize("name", ["pruned_model", "checkpoint.safetensors", "p20.gguf"])
def test_a_bin_is_known_by_its_content(tmp_path, tokenizer, tokens, name):
    model = make_tiny("llama-8q4kv")
    pruned = apply_plan(model, mixed_plan(model))
    (tmp_path / "pruned").mkdir()
    save_pruned(pruned, tokenizer, tmp_path / "pruned")
    file = tmp_path / name
    shutil.move(tmp_path / "pruned/pruned_model.bin", file)
    assert torch.equal(load_pruned(file)(tokens).logits, pruned(tokens).logits)
    assert len(load_tokenizer_of(file)) == 258


@pytest.mark.parametrize("content", [b"", b"{}", b"GGU"])
@pytest.mark.parametrize("name", ["pruned_model.bin", "model.gguf", "config.json"])
@pytest.mark.parametrize("read", [inspect_model, config_of])
def test_a_file_that_is_no_model_is_refused(tmp_path, content, name, read):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"pruned_model\.bin; got .*which is none of them"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("read", [inspect_model, config_of, load_pruned])
@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "no/such/folder", "gone.gguf", "/dev/null", "", "a b c"])
def test_a_name_of_nothing_is_refused(name, read, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="expected a model"):
        read(name)


def test_an_existing_file_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert with_revision("a@b") == ("a@b", {})
    assert with_revision("a@c") == ("a", {"revision": "c"})
