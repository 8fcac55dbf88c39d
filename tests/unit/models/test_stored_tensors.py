"""Weights are compared with the model by their headers, by every reader alike, and the index cannot lead elsewhere."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_tiny
from hgsp.errors import InputError
from hgsp.exports.source import read_source
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.identity import weights_identity
from hgsp.models.loading import inspect_model, load_dense
from hgsp.models.offload import load_offloaded
from hgsp.models.stored_tensors import stored_dtype, stored_tensors
from hgsp.models.weight_files import is_plain_name, shards_of

INDEX = "model.safetensors.index.json"


def every_tensor(folder):
    source = read_source(folder)
    return [source.read(name) for name in source.tensors.shapes]


def offloaded(folder):
    decoder, files = load_offloaded(inspect_model(str(folder)), "float32", "cpu")
    return [files.read(name) for name in decoder.model.state_dict()]


READERS = {
    "resident": lambda folder: load_dense(inspect_model(str(folder)), "float32", "cpu"),
    "offloaded": offloaded,
    "measured or trained": load_pruned,
    "exported": every_tensor,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    make_tiny("llama-8q4kv").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    make_tiny("llama-8q4kv").save_pretrained(folder, max_shard_size="100KB")
    return folder


def copied(folder, target):
    return shutil.copytree(folder, target / "model")


def changed_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    content = change(index, index["weight_map"]) or index
    (folder / INDEX).write_text(json.dumps(content))


NAME = "model.norm.weight"
INDICES = {
    "a list": (lambda index, files: [1], "JSON object"),
    "no map": (lambda index, files: {"metadata": {}}, "weight_map"),
    "a list as map": (lambda index, files: {"weight_map": [1]}, "weight_map"),
    "an empty map": (lambda index, files: {"weight_map": {}}, "weight_map"),
    "a list as file": (lambda index, files: files.update({NAME: ["a"]}), NAME),
    "a number as file": (lambda index, files: files.update({NAME: 1}), NAME),
    "null as file": (lambda index, files: files.update({NAME: None}), NAME),
    "the parent": (lambda index, files: files.update({NAME: "../model.safetensors"}), NAME),
    "dots": (lambda index, files: files.update({NAME: ".."}), NAME),
    "an absolute path": (lambda index, files: files.update({NAME: "/etc/passwd"}), NAME),
    "a folder": (lambda index, files: files.update({NAME: "a/b.safetensors"}), NAME),
    "a path of Windows": (lambda index, files: files.update({NAME: "c:\\x"}), NAME),
    "a NUL": (lambda index, files: files.update({NAME: "a\0b"}), NAME),
    "half an emoji": (lambda index, files: files.update({NAME: "\ud83d"}), NAME),
    "a long name": (lambda index, files: files.update({NAME: "x" * 300}), NAME),
    "no name": (lambda index, files: files.update({NAME: ""}), NAME),
    "a file that is missing": (lambda index, files: files.update({NAME: "gone.safetensors"}), "gone.safetensors"),
    "another shard": (lambda index, files: files.update({NAME: min(files.values())}), NAME),
    "a tensor of nowhere": (lambda index, files: files.update({"x": min(files.values())}), "x in"),
}


@pytest.mark.parametrize("case", INDICES)
def test_an_index_that_is_wrong_is_refused(sharded, tmp_path, case):
    change, said = INDICES[case]
    folder = copied(sharded, tmp_path)
    changed_index(folder, change)
    with pytest.raises(InputError, match=said) as refusal:
        stored_tensors(folder)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).isascii()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", ["the parent", "another shard"])
def test_so_it_is_by_every_reader(sharded, tmp_path, case, reader):
    change, said = INDICES[case]
    folder = copied(sharded, tmp_path)
    changed_index(folder, change)
    with pytest.raises(InputError, match=said):
        READERS[reader](folder)


@pytest.mark.parametrize("name", ["model.safetensors", "a b.safetensors", ".x", "größe"])
def test_names_of_files_are_plain(name):
    assert is_plain_name(name)


def test_the_index_of_an_older_checkpoint_is_read_as_strictly(tmp_path):
    make_tiny("llama-8q4kv").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../b.bin"}}))
    with pytest.raises(InputError, match="names of files in the same folder"):
        load_pruned(tmp_path)


def test_shards_are_listed_once(sharded):
    assert shards_of(sharded / INDEX) == sorted(path.name for path in sharded.glob("*.safetensors"))


@pytest.mark.parametrize("reader", READERS)
def test_a_tensor_in_two_shards_is_refused(sharded, tmp_path, reader):
    folder = copied(sharded, tmp_path)
    first, *_, last = sorted(folder.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: tensor}, last, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{name} in {first.name} and {last.name}"):
        READERS[reader](folder)


def with_tensor(folder, name, value):
    file = folder / "model.safetensors"
    save_file({**load_file(file), name: value}, file, metadata={"format": "pt"})


NAN, INFINITY = float("nan"), float("inf")
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("reader", [name for name in READERS if name != "exported"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_type_are_refused_by_name(whole, tmp_path, dtype, reader):
    folder = copied(whole, tmp_path)
    with_tensor(folder, DOWN, torch.ones(64, 96).to(dtype))
    with pytest.raises(InputError, match=rf"floating-point.*{DOWN}"):
        READERS[reader](folder)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "value"),
    [(DOWN, NAN), ("model.embed_tokens.weight", INFINITY), ("lm_head.weight", NAN), (NAME, -INFINITY)],
)
def test_a_weight_that_is_not_finite_is_refused_by_every_reader(whole, tmp_path, name, value, reader):
    folder = copied(whole, tmp_path)
    tensor = load_file(folder / "model.safetensors")[name]
    tensor.view(-1)[-1] = value
    with_tensor(folder, name, tensor)
    with pytest.raises(InputError, match=rf"finite weights in .*1 NaN or infinite values in {name}"):
        READERS[reader](folder)


def test_large_weights_are_finite(whole, tmp_path):
    """Their norm overflows."""
    folder = copied(whole, tmp_path)
    with_tensor(folder, NAME, torch.full((64,), 1e30))
    assert load_pruned(folder).model.norm.weight.max() == 1e30


@pytest.mark.parametrize("value", [1e5, -1e30])
def test_a_weight_too_large_for_float16_is_refused(whole, tmp_path, value):
    folder = copied(whole, tmp_path)
    with_tensor(folder, NAME, torch.full((64,), value))
    with pytest.raises(InputError, match=rf"64 NaN or infinite values in {NAME}.*bfloat16"):
        load_dense(inspect_model(str(folder)), "float16", "cpu")


def test_no_method_of_pruning_goes_on_with_nan():
    weights = {"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])}
    with pytest.raises(InputError, match="values in b"):
        weights_identity(weights, weights.__getitem__)


def test_a_bin_with_nan_is_refused(tmp_path, tokenizer):
    model = make_tiny("llama-8q4kv")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    save_pruned(model, tokenizer, tmp_path)
    with pytest.raises(InputError, match=NAME):
        load_pruned(tmp_path / "pruned_model.bin")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_without_a_dtype_in_the_config_the_tensors_decide(tmp_path, dtype):
    make_tiny("llama-8q4kv").to(dtype).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("dtype") == str(dtype).removeprefix("torch.")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(tmp_path, None) == dtype
    assert load_pruned(tmp_path).dtype == dtype
    assert read_source(tmp_path).dtype == dtype


def test_of_several_dtypes_that_of_most_values_counts(whole, tmp_path):
    folder = copied(whole, tmp_path)
    with_tensor(folder, NAME, torch.ones(64, dtype=torch.bfloat16))
    assert stored_dtype(folder, None) == torch.float32
    assert stored_dtype(folder, torch.bfloat16) == torch.bfloat16
