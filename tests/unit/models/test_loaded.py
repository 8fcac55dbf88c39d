"""Tensors of a loaded model, from memory and from files."""

import pytest
import torch

from conftest import make_tiny
from hgsp.models.loaded import load_for_pruning
from hgsp.models.loading import inspect_model


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tensors_are_read_in_the_dtype_they_are_used_in(saved, dtype, offload):
    model = make_tiny("qwen3-8q2kv")
    loaded = load_for_pruning(inspect_model(str(saved(model))), dtype, "cpu", offload=offload)
    assert (loaded.files is not None) is offload
    for name, parameter in model.named_parameters():
        expected = parameter.detach().to(getattr(torch, dtype))
        assert torch.equal(loaded.read(name), expected)
        assert loaded.read(name).dtype == expected.dtype
        if expected.ndim == 2:
            assert torch.equal(loaded.read_first_row(name), expected[:1])
