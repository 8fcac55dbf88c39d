"""Recovery of SmolLM2-135M on real instructions: the loss falls, and the saved model is the trained one."""

import json

import pytest
import torch
from peft import PeftModel

import finetune_lora
import run_global_pruning
from hgsp.models.checkpoint import load_pruned, load_tokenizer_of
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import apply_plan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cores")]

PRUNE = "--pruning_ratio 0.2 --temperature 0 --importance_method fisher --dataset builtin --nsamples 8 --seq_len 64"
TRAIN = "--max_steps 6 --batch_size 4 --val_size 4 --cutoff_len 96 --eval_steps 6 --learning_rate 2e-3 --device cpu"


@pytest.fixture(scope="module")
def pruned(real_model, tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    flags = [
        *PRUNE.split(),
        "--device",
        "cpu",
        "--skip_evaluation",
        "--no_bin",
        "--results_dir",
        results,
        "--output_name",
        "p20",
    ]
    assert run_global_pruning.main([str(part) for part in ("--base_model", real_model("smollm2-135m"), *flags)]) == 0
    return results / "p20"


@pytest.fixture(scope="module")
def recovered(pruned, real_model, data_dir):
    """Distilled from the dense model, with perplexity before and after."""
    output = pruned.with_name("p20_finetuned")
    rows = data_dir / "alpaca" / "alpaca_data_cleaned_first5000.json"
    paths = ["--pruned_model", pruned, "--data_path", rows, "--output_dir", output, "--data_dir", data_dir]
    measured = ["--eval_tasks", "wikitext", "--eval_seq_len", "256", "--eval_max_windows", "2"]
    parent = ["--distill_from", real_model("smollm2-135m")]
    assert finetune_lora.main([str(part) for part in (*paths, *TRAIN.split(), *measured, *parent)]) == 0
    return output


def test_a_few_steps_bring_perplexity_down(recovered):
    analysis = json.loads((recovered / "recovery_analysis.json").read_text())
    before, after = (analysis["evaluation"][when]["wikitext2"]["ppl"] for when in ("before", "after"))
    assert after < 0.95 * before
    assert analysis["held_out_loss"]["kept"] < 0.95 * analysis["held_out_loss"]["first"]
    report = json.loads((recovered / "pruning_analysis.json").read_text())
    assert report["recovery"]["evaluation"] == analysis["evaluation"]


def test_the_merged_model_chooses_as_the_adapted_one(pruned, recovered, data_dir):
    """The two agree on as many tokens as bfloat16 and float32 do with identical weights."""
    text = (data_dir / "wikitext2" / "wiki.test.raw").read_text()[:4000]
    tokens = torch.tensor([load_tokenizer_of(recovered)(text)["input_ids"][:600]]).view(4, 150)
    adapted = PeftModel.from_pretrained(load_pruned(pruned), str(recovered / "adapter"))
    models = adapted, load_pruned(recovered), load_pruned(recovered, dtype=torch.float32)
    with torch.no_grad():
        unmerged, merged, exact = (model(tokens).logits.argmax(-1) for model in models)
    rounding = (merged == exact).float().mean().item()
    assert rounding > 0.9
    assert (merged == unmerged).float().mean() > rounding - 0.02


def test_a_recovered_model_can_be_pruned_again(recovered):
    """Layers of different sizes are no obstacle."""
    model = load_pruned(recovered)
    geometry = geometry_of(model)
    keep = [LayerKeep(tuple(range(s.num_kv_groups)), tuple(range(s.mlp_width - 1))) for s in geometry.shapes]
    removed = geometry.num_layers * geometry.mlp_channel_params
    smaller = apply_plan(model, PrunePlan(tuple(keep), removed, removed))
    assert smaller.num_parameters() == geometry.total_params - removed
    assert smaller(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
