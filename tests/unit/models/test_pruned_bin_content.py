"""The entries of a .bin: each that is not as it was written is named, and no file leaves the folder."""

import pytest
import torch

from hgsp.errors import InputError
from hgsp.models.pruned_bin import BIN_FORMAT, read_bin

BYTES = torch.zeros(3, dtype=torch.uint8)
CONTENT = {
    "format": BIN_FORMAT,
    "config": "{}",
    "generation_config": None,
    "tokenizer_files": {"tokenizer.json": BYTES, "additional_chat_templates/tool use.jinja": BYTES},
    "state_dict": {"weight": torch.zeros(2, 3)},
}


def test_a_whole_file_is_read(tmp_path):
    torch.save(CONTENT, tmp_path / "m.bin")
    assert read_bin(tmp_path / "m.bin").keys() == CONTENT.keys()


@pytest.mark.parametrize(
    ("entry", "value", "named"),
    [
        ("config", None, "config must be JSON text, not NoneType"),
        ("config", "", "config: an empty file"),
        ("config", "[]", "config: the content must be an object"),
        ("config", '{"a": NaN}', "config: NaN"),
        ("generation_config", 3, "generation_config must be JSON text"),
        ("generation_config", "{", "generation_config: "),
        ("tokenizer_files", [], "tokenizer_files must map names to tensors"),
        ("tokenizer_files", {"a": torch.zeros(2)}, "tokenizer_files has a of torch.float32"),
        ("tokenizer_files", {"a": torch.zeros(2, 2, dtype=torch.uint8)}, "tokenizer_files has a of torch.uint8"),
        ("tokenizer_files", {"a": b"bytes"}, "'a', which is no plain tensor"),
        ("tokenizer_files", {"../a": BYTES}, "no name of a tokenizer's file"),
        ("tokenizer_files", {"/etc/a": BYTES}, "no name of a tokenizer's file"),
        ("tokenizer_files", {"a/b/c": BYTES}, "no name of a tokenizer's file"),
        ("tokenizer_files", {"a/../b": BYTES}, "no name of a tokenizer's file"),
        ("tokenizer_files", {"": BYTES}, "no name of a tokenizer's file"),
        ("tokenizer_files", {"x" * 300: BYTES}, "no name of a tokenizer's file"),
        ("state_dict", None, "state_dict must map names to tensors"),
        ("state_dict", {3: torch.zeros(1)}, "3, which is no plain tensor"),
        ("state_dict", {"weight": torch.zeros(2, 2).to_sparse()}, "'weight', which is no plain tensor"),
        ("state_dict", {"weight": torch.zeros(1).expand(10**12)}, "'weight', which is no plain tensor"),
        ("state_dict", {"weight": torch.zeros(2, device="meta")}, "'weight', which is no plain tensor"),
    ],
)
def test_another_entry_is_named(tmp_path, entry, value, named):
    torch.save(CONTENT | {entry: value}, tmp_path / "m.bin")
    with pytest.raises(InputError, match=r"m\.bin") as refused:
        read_bin(tmp_path / "m.bin")
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("entry", [name for name in CONTENT if name != "format"])
def test_a_missing_entry_is_named(tmp_path, entry):
    torch.save({name: value for name, value in CONTENT.items() if name != entry}, tmp_path / "m.bin")
    with pytest.raises(InputError, match=rf"\({entry} must"):
        read_bin(tmp_path / "m.bin")
