#!/usr/bin/env python3
"""Quality after recovery, by ratio and training setting, with the same text and number of steps.

Prunes the model, recovers it with every setting and measures each. Resumes from the work folder.

    python benchmarks/recovery.py --base_model MODEL --data_dir DATA --instructions alpaca.json --work_dir WORK \\
        --ratios 0.2 0.3 0.5 --max_steps 100 --output recovery.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from machine import provenance

import finetune_lora
import run_global_pruning
from evaluation import run_evaluation
from hgsp.data.texts import dataset_names
from hgsp.models.checkpoint import load_pruned, load_tokenizer_of
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.losses import Objective
from hgsp.recovery.outputs import padding_token
from hgsp.recovery.training_text import load_training_text

#: Setting -> flags, which win over those of the benchmark; TEACHER stands for the dense model. Learning rates are the
#: best of a few tried per setting.
SETTINGS = {
    "LoRA": ["--learning_rate", "3e-3"],
    "LoRA, distilled": ["--learning_rate", "3e-3", "--distill_from", "TEACHER"],
    "LoRA, half distilled": ["--learning_rate", "3e-3", "--distill_from", "TEACHER", "--distill_weight", "0.5"],
    "LoRA of output projections, distilled": [
        *("--learning_rate", "3e-3", "--distill_from", "TEACHER", "--lora_target_modules", "o_proj", "down_proj")
    ],
    "all parameters": ["--learning_rate", "5e-5", "--method", "full"],
    "all parameters, distilled": ["--learning_rate", "3e-4", "--method", "full", "--distill_from", "TEACHER"],
    **{
        f"all parameters, distilled, {number}": [
            *("--learning_rate", "1.5e-4", "--method", "full", "--distill_from", "TEACHER", "--batch_size", "1"),
            *("--micro_batch_size", "1", "--max_steps", steps, "--eval_steps", "100"),
        ]
        for number, steps in (("one sequence a step", "200"), ("400 steps of one sequence", "400"))
    },
    "all parameters, half distilled": [
        *("--learning_rate", "3e-4", "--method", "full", "--distill_from", "TEACHER", "--distill_weight", "0.5")
    ],
}
#: Answers that are measured where other texts are trained on.
NUM_ANSWERS = 32
#: Part of each text only, so that the whole table takes hours rather than days on a CPU.
MEASURED = ["--seq_len", "1024", "--max_windows", "8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--data_dir", required=True, help="local texts and tasks")
    parser.add_argument("--instructions", required=True, help="rows to train on; held-out answers are measured")
    parser.add_argument("--data_path", help="texts to train on instead of the instructions")
    parser.add_argument("--val_size", type=int, help="as of finetune_lora.py")
    parser.add_argument("--eval_steps", type=int, help="as of finetune_lora.py")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2])
    parser.add_argument("--ways", dest="settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument(
        "--prune_flags", nargs="*", default=[], help="further pruning flags, as name=value without dashes"
    )
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--tasks", nargs="*", default=["arc_easy"], help="further tasks and texts; a bare --tasks for none"
    )
    parser.add_argument("--limit", default="200")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    bench = Bench(options)
    trained_on = [Path(name).name for name in dataset_names(options.data_path or options.instructions)]
    rows = [{"ratio": 0.0, "way": "dense", **bench.measure(Path(options.base_model), "dense")}]
    for ratio in options.ratios:
        pruned = bench.prune(ratio)
        rows.append({"ratio": ratio, "way": "pruned", **bench.measure(pruned, pruned.name)})
        for setting in options.settings:
            folder, seconds = bench.recover(pruned, setting)
            rows.append({"ratio": ratio, "way": setting, "train_s": seconds, **bench.measure(folder, folder.name)})
            print(json.dumps(rows[-1]), flush=True)
            result = {
                **provenance(),
                "base_model": Path(options.base_model).name,
                "data_path": trained_on,
                "rows": rows,
            }
            options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


class Bench:
    """One dense model, and its pruned and recovered versions in the work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def prune(self, ratio: float) -> Path:
        """Return the folder of the pruned model, pruning unless it exists."""
        folder = Path(self._options.work_dir) / f"p{ratio * 100:g}"
        if not folder.exists():
            settings = {"pruning_ratio": ratio, "temperature": 0, "dataset": "wikitext2", "nsamples": 64}
            settings |= dict(flag.split("=", 1) for flag in self._options.prune_flags)
            flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
            paths = ["--base_model", self._options.base_model, "--output_name", folder.name]
            paths += ["--results_dir", str(folder.parent), "--data_dir", self._options.data_dir]
            common = ["--device", self._options.device, "--skip_evaluation", "--no_bin"]
            _succeed(run_global_pruning.main([*paths, *flags, *common]))
        return folder

    def recover(self, pruned: Path, setting: str) -> tuple[Path, float]:
        """Return the recovered folder and the training time in seconds, including evaluation on held-out rows."""
        folder = pruned.with_name(f"{pruned.name} {setting}".replace(", ", "_").replace(" ", "_"))
        if not folder.exists():
            flags = [self._options.base_model if flag == "TEACHER" else flag for flag in SETTINGS[setting]]
            paths = ["--pruned_model", str(pruned), "--output_dir", str(folder), "--overwrite"]
            _succeed(finetune_lora.main([*paths, *self._training_flags(), *flags]))
        analysis = json.loads((folder / "recovery_analysis.json").read_text(encoding="utf-8"))
        return folder, analysis["timings_s"]["train"]

    def _training_flags(self) -> list[str]:
        options = self._options
        settings = {"data_path": options.data_path or options.instructions, "data_dir": options.data_dir}
        settings |= {"max_steps": options.max_steps, "device": options.device}
        optional = {"val_size": options.val_size, "eval_steps": options.eval_steps}
        settings |= {name: value for name, value in optional.items() if value is not None}
        settings |= {"batch_size": options.batch_size, "micro_batch_size": options.batch_size}
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [*flags, "--packing", "--skip_evaluation", "--no_bin"]

    def measure(self, model: Path, name: str) -> dict[str, Any]:
        """Return perplexity on two texts, loss on held-out answers and accuracies; cached in the work folder."""
        options = self._options
        output = Path(options.work_dir) / "measured" / name
        kept = output / "cell.json"
        if kept.exists():
            return json.loads(kept.read_text(encoding="utf-8"))
        tasks = ",".join(["wikitext", "c4", *options.tasks])
        flags = ["--tasks", tasks, "--limit", options.limit, "--data_dir", options.data_dir, "--output", str(output)]
        base = ["--base_model", options.base_model, "--device", options.device]
        _succeed(run_evaluation.main(["--model_path", str(model), *base, *flags, *MEASURED]))
        found: dict[str, Any] = {}
        for item in json.loads((output / "results.json").read_text(encoding="utf-8"))["results"]:
            values = {metric["name"]: metric for metric in item["metrics"]}
            for metric, key in (("token_ppl", f"ppl_{item['task']}"), ("acc", f"acc_{item['task']}")):
                if metric in values:
                    found[key] = round(values[metric]["value"], 4)
                    found[f"{key}_stderr"] = round(values[metric]["stderr"] or 0.0, 4)
        found["answer_loss"] = round(self._answer_loss(model), 4)
        kept.write_text(json.dumps(found), encoding="utf-8")
        return found

    @torch.inference_mode()
    @fp32_matmul_fallback()
    def _answer_loss(self, path: Path) -> float:
        """Return the loss on the answers of the held-out rows, the same for every setting, in nats per token."""
        tokenizer = load_tokenizer_of(self._options.base_model)
        size = NUM_ANSWERS if self._options.data_path else None
        config = TrainingConfig(data_path=self._options.instructions, val_size=size)
        samples = load_training_text(config, tokenizer).held_out
        model = load_pruned(path, device=self._options.device)
        collator = Collator(padding_token(tokenizer, model.config.vocab_size), False)
        total = 0.0
        for start in range(0, len(samples), 8):
            batch = collator([{"sample": sample} for sample in samples[start : start + 8]])
            labels = batch.pop("labels").to(model.device)
            logits = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
            total += Objective().summed(logits, labels).item()
        return total / sum(sample.num_learned for sample in samples)


def _succeed(code: int) -> None:
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
