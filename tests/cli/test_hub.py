"""Results as others receive them: model cards, uploads, adapters, and no path of the machine that made them."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects

import finetune_lora
import run_global_pruning
from conftest import REPOSITORY
from evaluation import run_evaluation
from hgsp.models import hub_upload, model_cards

QUICK = shlex.split(
    "--pruning_ratio 0.2 --temperature 0 --dtype float32 --device cpu --nsamples 4 --seq_len 32 --eval_tasks builtin "
    "--eval_seq_len 64 --eval_max_windows 1"
)
RECOVER = shlex.split(
    "--max_steps 1 --batch_size 4 --micro_batch_size 4 --cutoff_len 64 --device cpu --eval_tasks builtin "
    "--eval_seq_len 64 --eval_max_windows 1"
)
BASE_CARD = "---\nlicense: other\nlicense_name: tiny\nlanguage:\n- en\n- de\ntags:\n- tiny\n---\n\n# Dense\n"


@pytest.fixture
def dense(saved, make):
    folder = saved(make("llama-8q4kv"))
    (folder / "README.md").write_text(BASE_CARD, encoding="utf-8")
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) for n in range(24)))
    return path


@pytest.fixture
def prune(dense, text_file, tmp_path):
    """``prune(*flags)`` prunes the tiny model into ``results/X/p``; later flags win."""

    def run(*flags):
        paths = ("--base_model", dense, "--dataset", text_file, "--results_dir", tmp_path / "results")
        return run_global_pruning.main([*QUICK, *map(str, (*paths, "--output_name", "X/p", *flags))])

    return run


@pytest.fixture
def recover(tmp_path, rows):
    """``recover(*flags)`` recovers ``results/X/p`` into ``results/X/r``."""

    def run(*flags):
        models = ("--pruned_model", tmp_path / "results/X/p", "--output_dir", tmp_path / "results/X/r")
        return finetune_lora.main([*RECOVER, *map(str, (*models, "--data_path", rows, *flags))])

    return run


class FakeHub:
    """The hub: repositories by id, each with its visibility and files; a token of ``ann``."""

    role, offline, fails = "write", False, False

    def __init__(self, monkeypatch):
        self.repositories = {}
        monkeypatch.setattr(hub_upload, "HfApi", lambda: self)
        monkeypatch.setattr(hub_upload, "get_token", lambda: "hf_secret")
        monkeypatch.setattr(hub_upload, "is_offline_mode", lambda: self.offline)
        monkeypatch.setattr(hub_upload, "download_card", lambda repo_id: self.repositories[repo_id]["README.md"])

    def whoami(self):
        return {"name": "ann", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": self.role}}}

    def create_repo(self, repo_id, *, private, exist_ok):
        assert private
        assert exist_ok
        self.repositories.setdefault(repo_id, {})
        return f"https://huggingface.co/{repo_id}"

    def file_exists(self, repo_id, name):
        return name in self.repositories[repo_id]

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns, delete_patterns):
        assert commit_message
        if self.fails:
            raise OSError("connection reset")
        files = self.repositories[repo_id]
        for name in list(filter_repo_objects(files, allow_patterns=delete_patterns)):
            del files[name]
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            files[name] = (folder_path / name).read_bytes().decode("utf-8", "replace")


@pytest.fixture
def hub(monkeypatch):
    return FakeHub(monkeypatch)


def card_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_inherits_licence_language_and_tags_and_has_the_measured_table(prune, tmp_path):
    assert prune() == 0
    folder = tmp_path / "results" / "X" / "p"
    metadata = ModelCard(card_of(folder)).data.to_dict()
    assert metadata == {
        "library_name": "transformers",
        "license": "other",
        "license_name": "tiny",
        "language": ["en", "de"],
        "pipeline_tag": "text-generation",
        "tags": ["hgsp", "pruned", "tiny"],
    }
    report = json.loads((folder / "pruning_analysis.json").read_text())
    ppl = [report["evaluation"][stage]["builtin"]["ppl"] for stage in ("before", "after")]
    assert f"| perplexity, builtin | {ppl[0]:.2f} | {ppl[1]:.2f} |" in card_of(folder)
    assert f"| parameters | {report['params_before']:,} | {report['params_after']:,} |" in card_of(folder)
    assert f"python {report['command']}\n" in card_of(folder)


def test_the_python_of_a_card_loads_its_model(prune, tmp_path):
    assert prune() == 0
    (code,) = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "results" / "X" / "p"), re.DOTALL)
    code += "print(type(model).__name__, len(tokenizer))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "results" / "X", env=environment, capture_output=True, text=True)
    assert done.stdout == "HgspLlamaForCausalLM 258\n", done.stderr


def test_a_recovered_model_s_card_has_three_columns_and_what_its_pruned_model_inherited(prune, recover, tmp_path):
    assert prune() == 0
    assert recover() == 0
    card = card_of(tmp_path / "results" / "X" / "r")
    assert ModelCard(card).data.tags == ["hgsp", "pruned", "recovered", "tiny"]
    assert ModelCard(card).data.license_name == "tiny"
    assert "|  | dense | pruned | recovered |" in card
    assert re.search(r"\| perplexity, builtin \| [0-9.]+ \| [0-9.]+ \| [0-9.]+ \|", card)


@pytest.mark.parametrize("edit", [lambda card: "# Mine\n", lambda card: card.replace("## Limits", "## My notes")])
def test_a_card_that_somebody_wrote_or_edited_survives_overwriting(prune, tmp_path, edit):
    assert prune() == 0
    card = tmp_path / "results" / "X" / "p" / "README.md"
    card.write_text(edit(card_of(card.parent)), encoding="utf-8")
    mine = card_of(card.parent)
    assert prune("--overwrite", "--pruning_ratio", "0.1") == 0
    assert card_of(card.parent) == mine


def test_our_own_card_is_replaced(prune, tmp_path):
    assert prune() == 0
    before = card_of(tmp_path / "results" / "X" / "p")
    assert prune("--overwrite", "--pruning_ratio", "0.1") == 0
    after = card_of(tmp_path / "results" / "X" / "p")
    assert before != after
    assert model_cards.is_own_card(before)
    assert model_cards.is_own_card(after)


@pytest.mark.parametrize("card", ["no metadata", "---\nlicense: [broken\n---\n", "---\n- a list\n---\n"])
def test_a_base_model_s_unreadable_card_gives_nothing(prune, dense, tmp_path, card):
    (dense / "README.md").write_text(card, encoding="utf-8")
    assert prune() == 0
    assert ModelCard(card_of(tmp_path / "results" / "X" / "p")).data.tags == ["hgsp", "pruned"]


def test_the_base_model_is_named_by_its_hub_id_alone(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--ann--tiny" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert model_cards.hub_id_of(str(cached)) == "ann/tiny"
    assert model_cards.hub_id_of("ann/tiny@main") == "ann/tiny"
    assert model_cards.hub_id_of(str(tmp_path)) is None


def test_a_base_model_of_the_hub_gives_its_card(monkeypatch, tmp_path):
    (tmp_path / "README.md").write_text(BASE_CARD, encoding="utf-8")
    monkeypatch.setattr(model_cards, "hf_hub_download", lambda repo_id, name: tmp_path / name)
    assert model_cards.read_card("ann/tiny") == BASE_CARD
    monkeypatch.setattr(model_cards, "hf_hub_download", lambda *_: (_ for _ in ()).throw(OSError("offline")))
    assert model_cards.read_card("ann/tiny") is None


def test_an_upload_has_the_model_and_the_report_without_scores_logs_and_the_second_copy(prune, hub, tmp_path):
    assert prune("--push_to_hub", "tiny-pruned") == 0
    files = set(hub.repositories["ann/tiny-pruned"])
    written = {path.name for path in (tmp_path / "results" / "X" / "p").rglob("*") if path.is_file()}
    assert files >= {"README.md", "config.json", "model.safetensors", "pruning_analysis.json", "tokenizer.json"}
    assert {"pruned_model.bin", "scores.npz", "global_group_table.csv", "training.log"} <= written
    assert not {name for name in files if name.endswith((".bin", ".npz", ".csv", ".log"))}
    assert 'from_pretrained("ann/tiny-pruned"' in hub.repositories["ann/tiny-pruned"]["README.md"]


def test_several_results_go_to_repositories_named_like_their_folders(prune, hub, rows):
    flags = ("--finetune", "--finetune_data_path", rows, "--finetune_epochs", "1", "--finetune_batch_size", "8")
    assert prune("--push_to_hub", "lab/p", "--pruning_ratio", "0.1", "0.3", *flags) == 0
    assert set(hub.repositories) == {"lab/p_10", "lab/p_30", "lab/p_10_finetuned", "lab/p_30_finetuned"}


def test_an_upload_replaces_weights_and_keeps_a_card_that_somebody_wrote(prune, recover, hub):
    assert prune() == 0
    hub.repositories["ann/r"] = {
        "README.md": "# Mine\n",
        "model-00001-of-00002.safetensors": "old",
        "notes.txt": "kept",
    }
    assert recover("--push_to_hub", "ann/r") == 0
    files = hub.repositories["ann/r"]
    assert (files["README.md"], files["notes.txt"]) == ("# Mine\n", "kept")
    assert "model.safetensors" in files
    assert "model-00001-of-00002.safetensors" not in files


def test_a_failed_upload_leaves_the_result_and_names_the_command(prune, hub, tmp_path, capsys):
    hub.fails = True
    assert prune("--push_to_hub", "ann/p") == 1
    error = capsys.readouterr().err
    assert "connection reset" in error
    assert f"hf upload ann/p {tmp_path}/results/X/p . --private --exclude pruned_model.bin" in error
    assert (tmp_path / "results" / "X" / "p" / "README.md").is_file()


REFUSED = {
    "id": ("--not/an--id", {}, "repository id"),
    "offline": ("ann/p", {"offline": True}, "HF_HUB_OFFLINE"),
    "read": ("ann/p", {"role": "read"}, "only read"),
    "namespace": ("bob/p", {}, "namespace of the token (ann, lab)"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("command", ["prune", "recover"])
def test_an_upload_that_cannot_succeed_is_refused_before_the_run(
    case, command, prune, recover, hub, tmp_path, monkeypatch, capsys
):
    repo_id, settings, message = REFUSED[case]
    if command == "recover":
        assert prune() == 0
    for name, value in settings.items():
        setattr(hub, name, value)
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", None)
    monkeypatch.setattr("hgsp.pipeline.recover.load_pruned", None)
    assert {"prune": prune, "recover": recover}[command](f"--push_to_hub={repo_id}") == 2
    assert message in capsys.readouterr().err
    assert not hub.repositories
    assert not (tmp_path / "results" / "X" / ("p" if command == "prune" else "r")).exists()


@pytest.mark.parametrize(("token", "message"), [(None, "got none"), ("hf_x", "unreachable")])
def test_no_token_and_no_connection_are_refused(prune, hub, monkeypatch, capsys, token, message):
    monkeypatch.setattr(hub_upload, "get_token", lambda: token)
    monkeypatch.setattr(hub, "whoami", lambda: (_ for _ in ()).throw(OSError("unreachable")))
    assert prune("--push_to_hub", "ann/p") == 2
    assert message in capsys.readouterr().err


def test_no_report_names_a_place_of_the_machine(prune, recover, tmp_path, dense, monkeypatch):
    (tmp_path / "launch").mkdir()
    monkeypatch.chdir(tmp_path / "launch")
    assert prune() == 0
    assert recover() == 0
    results = tmp_path / "results" / "X"
    models = ["--model_path", results / "p", "--base_model", dense, "--recovered_model", results / "r", "--compare"]
    flags = ["--tasks", "builtin", "--seq_len", "64", "--max_windows", "1", "--device", "cpu"]
    assert run_evaluation.main([*map(str, models), *flags]) == 0
    texts = [path for path in results.rglob("*") if path.suffix in (".json", ".md", ".csv", ".npz")]
    assert len(texts) > 12
    assert [path for path in texts if str(tmp_path).encode() in path.read_bytes()] == []
    report = json.loads((results / "p" / "pruning_analysis.json").read_text())
    assert report["base_model"] == "../dense"
    assert str(tmp_path) in (results / "p" / "logs" / "training.log").read_text()
    measured = json.loads((results / "p" / "evaluation" / "results.json").read_text())
    assert {role: model["path"] for role, model in measured["models"].items()} == {
        "dense": "../../../../dense",
        "pruned": "..",
        "recovered": "../../r",
    }


def test_a_command_from_a_report_repeats_the_run(prune, tmp_path, monkeypatch):
    (tmp_path / "launch").mkdir()
    monkeypatch.chdir(tmp_path / "launch")
    assert prune() == 0
    folder = tmp_path / "results" / "X" / "p"
    command = json.loads((folder / "pruning_analysis.json").read_text())["command"]
    plan = (folder / "prune_plan.json").read_bytes()
    assert run_global_pruning.main([*shlex.split(command)[1:], "--overwrite"]) == 0
    assert (folder / "prune_plan.json").read_bytes() == plan


def test_moved_results_are_measured_on_from_another_folder(prune, tmp_path, text_file, monkeypatch, capsys):
    assert prune("--eval_tasks", f"builtin,{text_file}") == 0
    flags = ["--tasks", f"builtin,{text_file}", "--seq_len", "64", "--max_windows", "1", "--device", "cpu"]
    assert run_evaluation.main(["--model_path", str(tmp_path / "results/X/p"), *flags]) == 0
    (tmp_path / "results").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    capsys.readouterr()
    assert run_evaluation.main(["--model_path", "X/p", *flags]) == 0
    assert capsys.readouterr().err.count("measured before") == 2


LOAD_ADAPTER = """
import sys, warnings
import hgsp
from peft import AutoPeftModelForCausalLM, PeftModel
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
same = PeftModel.from_pretrained(hgsp.load_pruned(sys.argv[2]), sys.argv[1])
print(type(model.get_base_model()).__name__, model.num_parameters() == same.num_parameters())
"""


def test_an_adapter_finds_its_base_from_any_folder_and_after_a_move(prune, recover, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prune() == 0
    assert recover() == 0
    config = json.loads((tmp_path / "results/X/r/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../../p"
    (tmp_path / "results").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    paths = [str(tmp_path / "moved" / "X" / "r" / "adapter"), str(tmp_path / "moved" / "X" / "p")]
    command = [sys.executable, "-W", "ignore", "-c", LOAD_ADAPTER, *paths]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True)
    assert done.stdout == "HgspLlamaForCausalLM True\n", done.stderr
