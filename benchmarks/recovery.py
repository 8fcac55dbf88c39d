#!/usr/bin/env python3
"""What recovery brings back, by ratio and way, with the same text and number of steps for every way.

Prunes the model, recovers it every way and measures all of them. Finished cells in the work folder are not made again.

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
from hgsp.models.checkpoint import load_pruned, load_tokenizer_of
from hgsp.recovery.config import RecoveryConfig
from hgsp.recovery.losses import Objective
from hgsp.recovery.outputs import padding_token
from hgsp.recovery.samples import Collator, load_training_text

#: Way -> its flags; PARENT stands for the dense model. The learning rates are the best of a few tried for each.
SETTINGS = {
    "LoRA": ["--learning_rate", "3e-3"],
    "LoRA, distilled": ["--learning_rate", "3e-3", "--distill_from", "PARENT"],
    "LoRA, half distilled": ["--learning_rate", "3e-3", "--distill_from", "PARENT", "--distill_weight", "0.5"],
    "all parameters": ["--learning_rate", "5e-5", "--method", "full"],
    "all parameters, distilled": ["--learning_rate", "3e-4", "--method", "full", "--distill_from", "PARENT"],
    "all parameters, half distilled": [
        *("--learning_rate", "3e-4", "--method", "full", "--distill_from", "PARENT", "--distill_weight", "0.5")
    ],
}
#: Measured of every model; not all of each text, so that the whole table takes hours and not days on a CPU.
MEASURED = ["--seq_len", "1024", "--max_windows", "8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--data_dir", required=True, help="local texts and tasks")
    parser.add_argument("--instructions", required=True, help="training rows")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2])
    parser.add_argument("--ways", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--prune_flags", nargs="*", default=[], help="without dashes: name=value")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--tasks", nargs="*", default=["arc_easy"], help="whose accuracy is measured; none: --tasks")
    parser.add_argument("--limit", default="200")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    bench = Bench(options)
    rows = [{"ratio": 0.0, "way": "dense", **bench.measure(Path(options.base_model), "dense")}]
    for ratio in options.ratios:
        pruned = bench.prune(ratio)
        rows.append({"ratio": ratio, "way": "pruned", **bench.measure(pruned, pruned.name)})
        for way in options.ways:
            folder, seconds = bench.recover(pruned, way)
            rows.append({"ratio": ratio, "way": way, "train_s": seconds, **bench.measure(folder, folder.name)})
            print(json.dumps(rows[-1]), flush=True)
            result = {**provenance(), "base_model": Path(options.base_model).name, "rows": rows}
            options.output.write_text(json.dumps(result, indent=2) + "\n")


class Bench:
    """One dense model and what is made of it in the work folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def prune(self, ratio: float) -> Path:
        folder = Path(self._options.work_dir) / f"p{ratio * 100:g}"
        if not folder.exists():
            asked = {"pruning_ratio": ratio, "temperature": 0, "dataset": "wikitext2", "nsamples": 64}
            asked |= dict(flag.split("=", 1) for flag in self._options.prune_flags)
            flags = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
            paths = ["--base_model", self._options.base_model, "--output_name", folder.name]
            paths += ["--results_dir", str(folder.parent), "--data_dir", self._options.data_dir]
            common = ["--device", self._options.device, "--skip_evaluation", "--no_bin"]
            _succeed(run_global_pruning.main([*paths, *flags, *common]))
        return folder

    def recover(self, pruned: Path, way: str) -> tuple[Path, float]:
        """The recovered folder, and the seconds its training took, evaluation on held-out rows included."""
        folder = pruned.with_name(f"{pruned.name} {way}".replace(", ", "_").replace(" ", "_"))
        if not folder.exists():
            flags = [self._options.base_model if flag == "PARENT" else flag for flag in SETTINGS[way]]
            paths = ["--pruned_model", str(pruned), "--output_dir", str(folder), "--overwrite"]
            _succeed(finetune_lora.main([*paths, *self._training_flags(), *flags]))
        analysis = json.loads((folder / "recovery_analysis.json").read_text())
        return folder, analysis["timings_s"]["train"]

    def _training_flags(self) -> list[str]:
        options = self._options
        settings = {"data_path": options.instructions, "max_steps": options.max_steps, "device": options.device}
        settings |= {"batch_size": options.batch_size, "micro_batch_size": options.batch_size}
        flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        return [*flags, "--packing", "--skip_evaluation", "--no_bin"]

    def measure(self, model: Path, name: str) -> dict[str, Any]:
        """Perplexity on two texts, the loss on held-out answers, and accuracies; kept in the work folder."""
        options = self._options
        output = Path(options.work_dir) / "measured" / name
        kept = output / "cell.json"
        if kept.exists():
            return json.loads(kept.read_text())
        tasks = ",".join(["wikitext", "c4", *options.tasks])
        flags = ["--tasks", tasks, "--limit", options.limit, "--data_dir", options.data_dir, "--output", str(output)]
        base = ["--base_model", options.base_model, "--device", options.device]
        _succeed(run_evaluation.main(["--model_path", str(model), *base, *flags, *MEASURED]))
        found: dict[str, Any] = {}
        for item in json.loads((output / "results.json").read_text())["results"]:
            values = {metric["name"]: metric for metric in item["metrics"]}
            for metric, key in (("token_ppl", f"ppl_{item['task']}"), ("acc", f"acc_{item['task']}")):
                if metric in values:
                    found[key] = round(values[metric]["value"], 4)
                    found[f"{key}_stderr"] = round(values[metric]["stderr"] or 0.0, 4)
        found["answer_loss"] = round(self._answer_loss(model), 4)
        kept.write_text(json.dumps(found))
        return found

    @torch.inference_mode()
    def _answer_loss(self, path: Path) -> float:
        """Nats per token of the answers of the rows that every way held out."""
        tokenizer = load_tokenizer_of(self._options.base_model)
        config = RecoveryConfig(
            pruned_model=str(path), output_dir="none", data_path=self._options.instructions, skip_evaluation=True
        )
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
