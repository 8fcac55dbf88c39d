"""A result folder with every file that a report reads, of a model that never was."""

import csv
import json

from hgsp.scoring.groups import CSV_COLUMNS

LAYERS, KV_GROUPS, WIDTH = 4, 2, 8


def ppl(value, **changes):
    protocol = {"tokens": 126, "windows": 2, "seq_len": 64, "bos": False, "dtype": "float32", "split": "test"}
    return {"ppl": value, "stderr": value / 20, "sha256": "abcdef0123456789", **protocol, **changes}


def samples(before, after):
    prompts = [
        {"prompt": "Once upon a time,", "chat": False, "before": f"a {before}", "after": f"a {after}"},
        {"prompt": "Why is the sky blue?", "chat": True, "before": f"It is {before}.", "after": f"It is {after}."},
    ]
    return {"before": f"The sea is {before}", "after": f"The sea is {after}", "prompts": prompts}


CALIBRATION = {"texts": ["c4"], "source": "c4, train", "sequences": 8, "seq_len": 64, "seed": 42}
ENVIRONMENT = {"hgsp": "0.1.0", "torch": "2.13.0", "peft": None, "device": "cpu", "device_name": "a processor"}


def kept_channels(layer):
    """Layer 0 keeps all, later ones fewer; the last is removed whole."""
    return [] if layer == LAYERS - 1 else list(range(WIDTH - 2 * layer))


def kept_groups(layer):
    return {0: [0, 1], 1: [1], 2: [0, 1]}.get(layer, [])


def layers(**more):
    return [
        {"layer": layer, "kept_kv_groups": kept_groups(layer), "kept_mlp_channels": kept_channels(layer)}
        | {"kept_ratio": len(kept_channels(layer)) / WIDTH, "num_kv_groups": KV_GROUPS, "num_mlp_channels": WIDTH}
        for layer in range(LAYERS)
    ]


def module(layer, name, before, after, ridge):
    return {"layer": layer, "module": name, "ridge": ridge, "error_before": before, "error_after": after}


def pruning(**changes):
    return {
        "schema_version": 1,
        "command": "run_global_pruning.py --base_model someone/Modest-1B --output_name p20 --pruning_ratio 0.2",
        "base_model": "someone/Modest-1B",
        "importance_method": "taylor",
        "asked_ratio": 0.2,
        "reached_ratio": 0.1996,
        "reached_ratio_decoder": 0.2512,
        "params_before": 1_000_000_000,
        "params_after": 800_400_000,
        "weight_bytes_before": 2_000_000_000,
        "weight_bytes_after": 1_600_800_000,
        "kv_cache_bytes_per_token_before": 65_536,
        "kv_cache_bytes_per_token_after": 40_960,
        "gqa_ratio": 4,
        "removed_layers": [3],
        "layers": layers(),
        "scoring": {"temperature": 1.0, "seed": 42, "calibration": CALIBRATION},
        "search": {"kl_before": 0.5, "kl_after": 0.3, "kl_of_steps": [0.4, 0.45, 0.3], "steps": 3, "moves": "profile"},
        "whole_blocks": {"emptied": [{"layer": 3, "kind": "mlp"}], "kl_by_emptied_blocks": {"0": 0.6, "1": 0.5}},
        "reconstruction": {
            "method": "lstsq",
            "calibration": CALIBRATION,
            "held_out_sequences": 8,
            "modules": [
                module(0, "self_attn.o_proj", 0.0, 0.0, None),
                module(0, "mlp.down_proj", 0.0, 0.0, None),
                module(1, "self_attn.o_proj", 0.5, 0.25, 0.01),
                module(1, "mlp.down_proj", 0.4, 0.1, 0.1),
                module(2, "mlp.down_proj", None, None, None),
            ],
        },
        "evaluation": {"before": {"c4": ppl(10.0)}, "after": {"c4": ppl(15.0)}},
        "collapsed": False,
        "samples": samples("deep", "wet"),
        "speed": {"workload": "prefill:1x128", "predicted_speedup": 1.2, "measured_speedup": 1.15},
        "timings_s": {"score": 100.0, "save": 2.5},
        "peak_memory_bytes": 3_000_000_000,
        "environment": ENVIRONMENT,
        "warnings": ["calibrated and evaluated on the same corpus (c4), different splits"],
        **changes,
    }


def recovery(**changes):
    return {
        "schema_version": 1,
        "command": "finetune_lora.py --pruned_model p20",
        "pruned_model": "p20",
        "method": "lora",
        "distilled_from": None,
        "data": {"source": "alpaca-cleaned", "train_sequences": 100},
        "parameters": {"trained": 1_000, "model": 800_400_000},
        "steps": 3,
        "kept_step": 3,
        "held_out_loss": {"first": 2.5, "kept": 2.0},
        "evaluation": {"before": {"c4": ppl(15.0)}, "after": {"c4": ppl(12.0)}},
        "samples": samples("wet", "salty"),
        "timings_s": {"train": 50.0},
        "environment": ENVIRONMENT,
        "warnings": [],
        **changes,
    }


def task(role, name="piqa", metrics=(("acc", 0.75, 0.01),), **changes):
    described = [{"name": n, "value": v, "stderr": e, "unit": "", "higher_is_better": True} for n, v, e in metrics]
    done = {"role": role, "task": name, "status": "done", "metrics": described, "num_items": 100, "reason": None}
    return done | {"protocol": {}} | changes


def evaluation(**changes):
    latencies = {"dense": 20.0, "pruned": 16.0}
    timed = [
        task(role, "efficiency", metrics=[("prefill_ms_batch1", value, None)]) for role, value in latencies.items()
    ]
    for item in timed:
        item["metrics"][0]["unit"] = "ms"
    results = [task("dense"), task("pruned", metrics=[("acc", 0.7, 0.02)]), *timed]
    results.append(task("pruned", "boolq", status="failed", metrics=(), reason="no such file"))
    models = {"dense": {"path": "someone/Modest-1B"}, "pruned": {"path": "p20"}}
    return {
        "schema_version": 1,
        "command": "run_evaluation.py --model_path p20",
        "models": models,
        "results": results,
        "environment": ENVIRONMENT,
        "warnings": [],
        **changes,
    }


def write_group_table(folder, prior=0.5):
    with (folder / "global_group_table.csv").open("w", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(CSV_COLUMNS)
        for layer in range(LAYERS):
            for kind, number, kept in (
                ("attention", KV_GROUPS, kept_groups(layer)),
                ("mlp", WIDTH, kept_channels(layer)),
            ):
                for group in range(number):
                    score = 10.0 ** -(group + layer)
                    table.writerow((layer, kind, group, score, 10, score, prior, score, int(group in kept)))


def write_losses(folder):
    rows = ["step,epoch,loss,eval_loss,learning_rate,grad_norm", "0,0,,2.5,,"]
    rows += ["1,0.3,2.6,,1e-4,1.0", "2,0.6,2.2,,1e-4,1.0", "3,1.0,2.1,2.0,1e-4,1.0"]
    (folder / "loss_curve.csv").write_text("\n".join(rows) + "\n")


def write_files(folder, table=True, losses=False, **reports):
    """Write reports by name: pruning, recovery, evaluation; returns the folder."""
    names = {"pruning": "pruning_analysis.json", "recovery": "recovery_analysis.json"}
    names["evaluation"] = "evaluation/results.json"
    for name, content in reports.items():
        path = folder / names[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    if table:
        write_group_table(folder)
    if losses:
        write_losses(folder)
    return folder
