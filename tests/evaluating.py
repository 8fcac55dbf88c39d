"""For tests of the evaluation recipe: quick settings, and what a run left behind."""

import json

import hgsp.evaluation.runner
import hgsp.evaluation.side_by_side

FAST = {
    "--device": "cpu",
    "--seq_len": "64",
    "--limit": "2",
    "--prompt_len": "4",
    "--decode_len": "2",
    "--repeats": "1",
}


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def statuses(folder):
    return {(item["role"], item["task"]): item["status"] for item in stored(folder)["results"]}


def no_weights(monkeypatch):
    """From now on loading a model is an error: what is refused must be refused before."""

    def load(*arguments, **named):
        raise AssertionError("weights were loaded")

    for module in (hgsp.evaluation.runner, hgsp.evaluation.side_by_side):
        monkeypatch.setattr(module, "load_model", load)
