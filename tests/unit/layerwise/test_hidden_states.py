"""Where hidden states are kept."""

import errno
import os

import pytest
import torch

from hgsp.layerwise import hidden_states
from hgsp.layerwise.hidden_states import HiddenStateCache


def test_activations_lie_beside_the_weights_while_a_quarter_of_what_is_free_there_holds_them(monkeypatch):
    num_bytes = 2 * 8 * 16 * 2
    monkeypatch.setattr(hidden_states, "free_bytes", lambda device: 4 * (2 * num_bytes + 1))
    gpu = torch.device("meta")  # in place of one: not main memory
    arrays = HiddenStateCache((2, 8, 16), torch.bfloat16, None, gpu)
    assert [arrays.open(index).device.type for index in (0, 1, 2, 1)] == ["meta", "meta", "cpu", "meta"]
    arrays.drop(2)
    assert arrays.open(3).device.type == "cpu"
    arrays.drop(0)
    assert arrays.open(4).device.type == "meta"


def test_a_full_disk_is_an_error_when_an_array_is_opened_and_leaves_nothing(monkeypatch, tmp_path):
    """Writing to a mapping without blocks on the disk would kill the process (SIGBUS)."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    arrays = HiddenStateCache((2, 8, 16), torch.float32, tmp_path / "spill", torch.device("cpu"))
    arrays.open(0).fill_(1)
    assert (arrays.open(0) == 1).all()  # not emptied when it is opened again
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"No space left.*boundary-1"):
        arrays.open(1)
    arrays.close()
    assert not list((tmp_path / "spill").iterdir())
