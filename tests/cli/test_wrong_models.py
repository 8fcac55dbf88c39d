"""A folder that is not the model it seems to be is refused by every command, before anything is written."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune_lora
import run_global_pruning
from evaluation import run_evaluation
from hgsp.cli.main import main


def leave_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def add_a_bias(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.ones(64)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


COMMANDS = {
    "prune": (run_global_pruning.main, "--base_model {} --output_name a --results_dir {out} --pruning_ratio 0.1"),
    "prune --offload": (
        run_global_pruning.main,
        "--base_model {} --output_name a --results_dir {out} --pruning_ratio 0.1 --offload",
    ),
    "score": (lambda argv: main(["score", *argv]), "--base_model {} --output {out}/scores.npz"),
    "evaluate": (run_evaluation.main, "--model_path {} --tasks builtin --output {out} --seq_len 64 --limit 1"),
    "finetune": (finetune_lora.main, "--pruned_model {} --output_dir {out} --data_path builtin --max_steps 1"),
    "finetune --method full": (
        finetune_lora.main,
        "--pruned_model {} --output_dir {out} --data_path builtin --max_steps 1 --method full",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("damage", "said"),
    [(leave_an_adapter, "adapter_config.json"), (add_a_bias, "q_proj.bias")],
    ids=["adapter", "bias"],
)
def test_every_command_refuses_it(dense, tmp_path, capsys, command, damage, said):
    damage(dense)
    run, flags = COMMANDS[command]
    pruning = "--dataset builtin --nsamples 4 --seq_len 32 --skip_evaluation" if command[0] in "ps" else ""
    shared = "--device cpu" + (" --skip_evaluation" if "finetune" in command else "")
    flags = f"{flags} {pruning.replace('--skip_evaluation', '') if command == 'score' else pruning} {shared}"
    assert run([part.format(dense, out=tmp_path / "out") for part in flags.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: expected")
    assert said in error
    assert not list(tmp_path.glob("out/*.safetensors"))
