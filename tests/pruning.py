"""What tests of the pruning recipe share: quick settings, and what lies in a result."""

import json

from safetensors.torch import load_file

from hgsp.pipeline.verify import DIFFERS, verify_folder

#: Flags that score a tiny model in a second.
QUICK = {
    "--nsamples": "4",
    "--seq_len": "32",
    "--dtype": "float32",
    "--device": "cpu",
    "--min_mlp_width": "8",
    "--temperature": "0",
}
BALANCED = {
    "--pruning_ratio": "0.2",
    "--temperature": "0.0",
    "--nsamples": "4",
    "--seq_len": "32",
    "--reconstruct": "lstsq",
    "--reconstruct_nsamples": "48",
    "--dtype": "float32",
    "--device": "cpu",
    "--min_mlp_width": "8",
    "--eval_tasks": "builtin",
    "--eval_max_windows": "2",
    "--eval_seq_len": "64",
}


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def analysis_of(folder):
    return json.loads((folder / "pruning_analysis.json").read_text())


def differences_in(folder, base_model):
    """What `hgsp verify` finds wrong with a result."""
    return [check for check in verify_folder(folder, str(base_model)) if check.status == DIFFERS]
