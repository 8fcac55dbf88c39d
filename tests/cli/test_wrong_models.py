"""A folder that is not the model it seems to be is refused by every command, before anything is written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import finetune_lora
import run_global_pruning
from conftest import make_tiny
from evaluation import run_evaluation
from hgsp.cli.main import main


def leave_an_adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add_a_bias(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))


def put_nan(folder):
    rewrite(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0, 0].fill_(float("nan")))


def store_integers(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))


def lead_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


PRUNING = "--dataset builtin --nsamples 4 --seq_len 32 --device cpu"
FINETUNING = "--output_dir {out} --data_path builtin --max_steps 1 --skip_evaluation --device cpu"
PRUNE = "--base_model {} --output_name a --results_dir {out} --pruning_ratio 0.1 --skip_evaluation " + PRUNING
#: Commands that read weights.
READERS = {
    "prune": (run_global_pruning.main, PRUNE),
    "prune at random": (run_global_pruning.main, PRUNE + " --importance_method random"),
    "prune --offload": (run_global_pruning.main, PRUNE + " --offload"),
    "score": (lambda argv: main(["score", *argv]), "--base_model {} --output {out}/scores.npz " + PRUNING),
    "evaluate": (
        run_evaluation.main,
        "--model_path {} --tasks builtin --output {out} --seq_len 64 --limit 1 --device cpu",
    ),
    "finetune": (finetune_lora.main, "--pruned_model {} " + FINETUNING),
    "finetune --method full": (finetune_lora.main, "--pruned_model {} --method full " + FINETUNING),
    "distill": (finetune_lora.main, "--pruned_model {student} --distill_from {} " + FINETUNING),
    "distill --distill_offload": (
        finetune_lora.main,
        "--pruned_model {student} --distill_from {} --distill_offload " + FINETUNING,
    ),
    "export": (main, "export {} --to stock --output {out}"),
}
#: Commands that read the config alone.
OTHERS = {
    "prune --dry_run": (run_global_pruning.main, PRUNE + " --dry_run"),
    "profile": (main, "profile {} --output {out}.json --device cpu"),
    "doctor": (main, "doctor {}"),
}
WEIGHTS = {
    "bias": (add_a_bias, "q_proj.bias"),
    "NaN": (put_nan, "model.layers.1.mlp.up_proj.weight"),
    "integers": (store_integers, "model.norm.weight"),
    "an index that leads elsewhere": (lead_elsewhere, "elsewhere.safetensors"),
}
CONFIGS = {
    "adapter": (leave_an_adapter, "adapter_config.json"),
    "activation": (lambda folder: edit(folder, hidden_act="swiglu2"), 'hidden_act in {}/config.json; got "swiglu2"'),
    "rope": (lambda folder: edit(folder, rope_parameters={"rope_type": "ntk"}), "rope_parameters"),
    "size": (lambda folder: edit(folder, head_dim=0), "head_dim"),
    "an unknown model with code": (
        lambda folder: edit(folder, model_type="x", auto_map={"AutoConfig": "x.X", "AutoModelForCausalLM": "x.Y"}),
        '"x"',
    ),
}


#: Commands that differ in how they read a model.
KINDS = ("prune", "evaluate", "export")
#: Damage that every command is tried with; of the others, one gate reads them all.
EVERYWHERE = ("bias", "NaN", "adapter", "activation")


def cases(damages, commands):
    return [
        (damage, command)
        for damage in damages
        for command in commands
        if damage in EVERYWHERE or command in KINDS or (command == "distill" and "code" in damage)
    ]


def refusal_of(command, folder, student, out, capsys):
    """Run a command that must leave no result, and return the last line of its errors."""
    run, flags = command
    assert run([part.format(folder, out=out, student=student) for part in flags.split()]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: expected")
    assert not [*out.parent.glob("out*/**/*.safetensors"), *out.parent.glob("out*.json")]
    return error.replace("'x'", '"x"')


@pytest.fixture
def student(saved):
    return saved(make_tiny("llama-8q4kv", seed=1), "student")


@pytest.mark.parametrize(("damage", "command"), cases(WEIGHTS, READERS))
def test_every_command_refuses_wrong_weights(dense, student, tmp_path, capsys, command, damage):
    change, said = WEIGHTS[damage]
    change(dense)
    assert said.format(dense) in refusal_of(READERS[command], dense, student, tmp_path / "out", capsys)


@pytest.mark.parametrize(("damage", "command"), cases(CONFIGS, READERS | OTHERS))
def test_every_command_refuses_a_wrong_config(dense, student, tmp_path, capsys, monkeypatch, command, damage):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked about code"))
    (dense / "x.py").write_text("raise SystemExit('code of the folder ran')\n")
    change, said = CONFIGS[damage]
    change(dense)
    assert said.format(dense) in refusal_of((READERS | OTHERS)[command], dense, student, tmp_path / "out", capsys)
