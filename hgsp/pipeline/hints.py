"""Hints of runs with settings that are known to be weak, with the gain that we measured."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace

from hgsp.console.tables import format_number
from hgsp.pipeline.recipes import BALANCED, BEST, Recipe
from hgsp.recovery.config import TrainingConfig, num_updates

MODEL = "SmolLM2-135M-Instruct"
#: Perplexity of ``MODEL`` on WikiText-2 by fraction of the decoder layers' parameters removed, calibrated on the same
#: text: methods by name and temperature without reconstruction (benchmarks/results/methods_smollm2.json), and
#: ``--recipe balanced`` (quality_smollm2.json).
DENSE_PPL = 29.24
METHODS_PPL: Mapping[tuple[str, float], Mapping[float, float]] = {
    ("fisher", 0.0): {0.1: 35.48, 0.2: 48.95, 0.3: 73.68, 0.5: 305.51},
    ("fisher", 1.0): {0.1: 37.22, 0.2: 53.22, 0.3: 80.27, 0.5: 341.84},
    ("fisher_token", 0.0): {0.1: 35.06, 0.2: 50.81, 0.3: 80.27, 0.5: 204.93},
    ("flap", 0.0): {0.1: 37.99, 0.2: 54.03, 0.3: 1318.23, 0.5: 7543.03},
    ("flap", 1.0): {0.1: 39.84, 0.2: 91.91, 0.3: 211.9, 0.5: 730.74},
    ("magnitude", 0.0): {0.1: 1289162.73, 0.2: 4227698.69, 0.3: 824112.4, 0.5: 937291.96},
    ("magnitude", 1.0): {0.1: 2874.82, 0.2: 27019.55, 0.3: 21065.24, 0.5: 466282.22},
    ("taylor", 0.0): {0.1: 36.51, 0.2: 50.5, 0.3: 79.01, 0.5: 237.41},
    ("taylor", 1.0): {0.1: 53.54, 0.2: 89.86, 0.3: 175.03, 0.5: 467.02},
    ("taylor_2nd", 0.0): {0.1: 36.46, 0.2: 50.54, 0.3: 78.97, 0.5: 237.58},
    ("taylor_2nd", 1.0): {0.1: 53.6, 0.2: 89.79, 0.3: 175.03, 0.5: 467.17},
    ("wanda", 0.0): {0.1: 37.88, 0.2: 53.9, 0.3: 1674.24, 0.5: 6006.6},
    ("wanda", 1.0): {0.1: 39.99, 0.2: 80.65, 0.3: 196.08, 0.5: 426.65},
}
BALANCED_PPL: Mapping[float, float] = {0.2: 37.84, 0.3: 46.98, 0.5: 79.46}

#: Methods that score gradients: the prior costs them quality.
GRADIENT_METHODS = ("taylor", "taylor_2nd", "fisher", "fisher_token")
#: Fraction of the decoder layers from which a plan should be reconstructed.
RECONSTRUCT_FROM = 0.15
#: A run is told of measurements at ratios that differ from its own by at most this fraction of the decoder layers.
NEAR = 0.1
#: A training of fewer steps than the first gets a hint towards a batch that makes about as many as the second.
FEW_STEPS, ENOUGH_STEPS = 100, 200


def hint(recipe: Recipe, method: str, decoder_ratio: float, given: Collection[str]) -> str | None:
    """Return one line that names better flags and their measured gain; None where the settings are not known weak.

    Weak are ``magnitude``, no reconstruction above ``RECONSTRUCT_FROM``, and gradient methods with the prior.

    Args:
        recipe: settings of the run.
        method: importance method of its scores, which may come from a file.
        decoder_ratio: fraction of the decoder layers' parameters removed.
        given: names of the flags in the command.
    """
    if "recipe" in given or recipe in (BALANCED, BEST):
        return None
    temperature = 1.0 if recipe.temperature > 0 else 0.0
    if method == "magnitude" or (not recipe.reconstructs and decoder_ratio > RECONSTRUCT_FROM):
        temperature = temperature if (method, temperature) in METHODS_PPL else 0.0
        replaced = [f"--{name}" for name in (*BALANCED.settings(), "scores") if name in given]
        better, found = "--recipe balanced", BALANCED_PPL
        if replaced:
            better += f" instead of {' '.join(replaced)}"
    elif recipe.temperature > 0 and method in GRADIENT_METHODS:
        better, found = "--temperature 0", METHODS_PPL.get((method, 0.0), {})
    else:
        return None
    measured = METHODS_PPL.get((method, temperature), {})
    ratio = min(set(measured) & set(found), key=lambda known: abs(known - decoder_ratio), default=None)
    if ratio is None or abs(ratio - decoder_ratio) > NEAR or found[ratio] >= measured[ratio]:
        return None
    return (
        f"hint: use {better}. On {MODEL}, {ratio:.0%} of its decoder layers removed, it left WikiText-2 perplexity "
        f"{found[ratio]:.1f}; {method} with temperature {temperature:g} and no reconstruction left "
        f"{format_number(measured[ratio], 1)} (dense {DENSE_PPL:.1f})"
    )


def batch_hint(config: TrainingConfig, num_sequences: int, processes: int) -> str | None:
    """Return one line that names a smaller batch; None if steps are many, were asked for, or cannot be more."""
    steps, at_once = num_updates(num_sequences, config, processes), config.micro_batch_size * processes
    if config.max_steps is not None or steps >= FEW_STEPS or config.batch_size == at_once:
        return None
    batch = max(at_once, int(num_sequences * config.num_epochs / ENOUGH_STEPS) // at_once * at_once)
    more = num_updates(num_sequences, replace(config, batch_size=batch), processes)
    return (
        f"hint: {steps} optimizer steps are few; --batch_size {batch} makes {more} of the same text. On {MODEL}, 200 "
        "steps of one sequence left lower perplexities than 50 of four"
    )


def flags_in(command: str) -> frozenset[str]:
    """Return the names of the flags in a command line."""
    flags = (word.removeprefix("--").partition("=")[0] for word in shlex.split(command) if word.startswith("--"))
    return frozenset(flag.replace("-", "_") for flag in flags)
