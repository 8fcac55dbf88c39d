"""The benchmark for one GPU: what it needs is checked before anything is timed."""

import json
import sys

import pytest

from conftest import REPOSITORY
from hgsp.models.geometry import LayerShape, geometry_of

sys.path.append(str(REPOSITORY / "benchmarks"))
import gpu_speed
from shapes import config_of

TINY = {**gpu_speed.TINY, "num_hidden_layers": 1}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``run(*flags)`` runs the script with a layer of the small shape; results go to a folder that is not there."""
    monkeypatch.setattr(gpu_speed, "TINY", TINY)

    def start(*flags):
        output = tmp_path / "new" / "gpu_speed.json"
        monkeypatch.setattr(sys, "argv", ["gpu_speed.py", "--output", str(output), "--device", "cpu", *flags])
        gpu_speed.main()
        return output

    return start


def test_every_model_has_a_speed(run, capsys):
    output = run("--tiny", "--no_compile", "--rounds", "1", "--prompt_len", "4", "--decode_len", "2")
    result = json.loads(output.read_text())
    assert {(row["phase"], row["batch_size"]) for row in result["rows"]} == {
        (phase, size) for phase in ("prefill", "decode") for size in (1, 16)
    }
    printed = capsys.readouterr()
    assert "| multiples of 64 |" in printed.out
    assert printed.out.strip() == output.with_suffix(".md").read_text().strip()
    assert "batch 16: measured" in printed.err


def test_time_that_is_over_leaves_out_batch_sizes_and_keeps_results(run, capsys):
    output = run("--tiny", "--no_compile", "--minutes", "0", "--prompt_len", "4", "--decode_len", "2")
    assert {row["batch_size"] for row in json.loads(output.read_text())["rows"]} == {1}
    assert "batch 16 is left out" in capsys.readouterr().err


def test_without_a_gpu_the_large_shape_is_refused_at_once(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run()
    assert stopped.value.code == 2
    assert "no GPU was found" in capsys.readouterr().err


def test_plans_of_all_multiples_have_the_same_parameters(make):
    geometry = geometry_of(make("llama-8q4kv", intermediate_size=1024, num_hidden_layers=8))
    for multiple in gpu_speed.MULTIPLES:
        shapes = gpu_speed.pruned_shapes(geometry, multiple)
        assert all(shape.mlp_width % multiple == 0 for shape in shapes)
        params = sum(map(geometry.layer_params, shapes))
        block = geometry.layer_params(LayerShape(1, multiple)) - geometry.layer_params(LayerShape(1, 0))
        assert params == pytest.approx(0.8 * geometry.decoder_params, abs=8 * block)


@pytest.mark.parametrize(("gibibytes", "layers"), [(80, 22), (24, 3), (12, 0)])
def test_layers_that_fit_follow_the_free_memory(monkeypatch, gibibytes, layers):
    monkeypatch.setattr(gpu_speed.torch.cuda, "mem_get_info", lambda _: (gibibytes * 2**30, 0))
    assert gpu_speed.fitting_layers(config_of("LLaMA-3-8B"), "cuda") == layers
