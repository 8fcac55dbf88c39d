"""hgsp verify: every kind of damage to a result is found and named, and whole results of every kind pass."""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_tiny
from hgsp.cli.verify import main
from hgsp.console.checksums import CHECKSUMS
from hgsp.console.report_schema import RECOVERY_REPORT
from hgsp.exports.export import export
from hgsp.models.pruned_bin import BIN_NAME
from hgsp.pipeline.verify import DIFFERS, NOT_APPLIED, PASSED

WEIGHTS, ANALYSIS = "model.safetensors", "pruning_analysis.json"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def results(tmp_path_factory, tokenizer):
    """A folder with a dense model, another one, and a result of the first."""
    from hgsp.cli import prune

    folder = tmp_path_factory.mktemp("verify")
    for name, seed in (("dense", 0), ("other", 1)):
        make_tiny("llama-8q4kv", seed, vocab_size=272).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    quick = "--importance_method magnitude --temperature 0 --skip_evaluation --device cpu --min_mlp_width 8"
    places = f"--base_model {folder / 'dense'} --results_dir {folder} --output_name pruned --pruning_ratio 0.2"
    assert prune.main([*quick.split(), *places.split()]) == 0
    return folder


@pytest.fixture
def result(results, tmp_path):
    """A copy of the result, to be damaged."""
    return shutil.copytree(results / "pruned", tmp_path / "pruned")


@pytest.fixture
def verify(capsys, results):
    """``verify(folder, *flags)`` returns the exit code, the status of every check, and the line on stderr."""

    def run(folder, *flags, base="dense"):
        given = ["--base_model", str(results / base)] if base else []
        code = main([str(folder), "--json", *given, *flags])
        out, err = capsys.readouterr()
        checks = json.loads(out)["checks"] if out else []
        return code, {check["name"]: check["status"] for check in checks}, err

    return run


def test_a_whole_result_passes_every_check(results, verify):
    code, found, err = verify(results / "pruned")
    assert (code, err) == (0, "")
    assert set(found.values()) == {PASSED}
    assert len(found) == 6


def test_the_output_for_people_names_every_check(results, capsys):
    assert main([str(results / "pruned"), "--base_model", str(results / "dense")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(f" {PASSED}: " in line for line in lines)


def flip(path, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("part", [0.0005, 0.01, 0.3, 0.999])
@pytest.mark.parametrize("name", [WEIGHTS, BIN_NAME])
def test_a_flipped_bit_in_the_weights_is_found(result, verify, name, part):
    flip(result / name, int((result / name).stat().st_size * part), bit=3)
    code, found, err = verify(result, base=None)
    assert code == 1
    assert found["checksums"] == DIFFERS
    assert err.startswith(f"error: {name} has SHA-256 ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "generation_config.json", "prune_plan.json", "global_group_table.csv"]
)
def test_any_other_damaged_file_is_found(result, verify, name):
    flip(result / name, 40, bit=1)
    code, _, err = verify(result, base=None)
    assert code == 1
    assert err.startswith(f"error: {name} has SHA-256 ")


def test_a_missing_file_is_found_but_a_second_copy_may_be_deleted(result, verify):
    (result / BIN_NAME).unlink()
    code, found, _ = verify(result, base=None)
    assert (code, found[BIN_NAME]) == (0, NOT_APPLIED)
    (result / "tokenizer.json").unlink()
    assert verify(result, base=None)[2] == f"error: tokenizer.json of {CHECKSUMS} is missing\n"


def change_weight(folder, value=2.0):
    tensors = load_file(folder / WEIGHTS)
    tensors[NAME][2, 5] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_results_of_earlier_versions_are_compared_with_bin_and_dense_model(result, verify):
    (result / CHECKSUMS).unlink()
    code, found, err = verify(result)
    assert (code, found["checksums"], err) == (0, NOT_APPLIED, "")
    change_weight(result)
    code, found, err = verify(result)
    assert (found[BIN_NAME], found["dense model"], found["logits"]) == (DIFFERS, DIFFERS, DIFFERS)
    assert f"{WEIGHTS}: {NAME}[2, 5] is 2, and " in err
    assert err.endswith(f" in {BIN_NAME}\n")
    (result / BIN_NAME).unlink()
    assert verify(result)[2].endswith(" in the dense model\n")


def test_weights_that_are_not_finite_are_found(result, verify):
    (result / CHECKSUMS).unlink()
    change_weight(result, float("nan"))
    assert verify(result)[2] == f"error: {WEIGHTS}: {NAME}[2, 5] is nan\n"


def without_tensor(tensors):
    del tensors[NAME]


def with_another_tensor(tensors):
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(4)


def with_fewer_rows(tensors):
    tensors[NAME] = tensors[NAME][1:].contiguous()


def in_another_dtype(tensors):
    tensors[NAME] = tensors[NAME].float()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_tensor, f"{NAME} is in no file of weights"),
        (with_another_tensor, "model.layers.0.mlp.up_proj.bias"),
        (with_fewer_rows, f"{WEIGHTS}: {NAME} has shape "),
        (in_another_dtype, f"{WEIGHTS}: {NAME} is torch.float32, and torch.bfloat16 in config.json"),
    ],
)
def test_tensors_that_config_does_not_describe_are_found(result, verify, change, message):
    (result / CHECKSUMS).unlink()
    tensors = load_file(result / WEIGHTS)
    change(tensors)
    save_file(tensors, result / WEIGHTS, metadata={"format": "pt"})
    code, _, err = verify(result, base=None)
    assert code == 1
    assert message in err


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_plan_of_other_groups_is_found_beside_report_group_table_and_sizes(result, verify):
    (result / CHECKSUMS).unlink()
    edit(result / "prune_plan.json", lambda plan: plan["layers"][1]["mlp_channels"].pop())
    assert "prune_plan.json keeps other groups in layer 1 than pruning_analysis.json" in verify(result, base=None)[2]
    (result / ANALYSIS).unlink()
    assert f"{NAME.replace('.weight', '')}.weight has " in verify(result, base=None)[2]


def test_a_number_of_parameters_that_is_wrong_is_found(result, verify):
    edit(result / ANALYSIS, lambda report: report.update(params_after=report["params_after"] + 1))
    assert "parameters, and pruning_analysis.json" in verify(result, base=None)[2]


def test_a_group_table_that_contradicts_the_plan_is_found(result, verify):
    (result / CHECKSUMS).unlink()
    table = result / "global_group_table.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1][:-1] + str(1 - int(lines[1][-1]))
    table.write_text("\n".join(lines) + "\n")
    assert "global_group_table.csv and prune_plan.json differ in layer 0, attention group 0" in verify(result)[2]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"layers": 7}'])
@pytest.mark.parametrize("name", ["prune_plan.json", "config.json"])
def test_damaged_files_of_a_result_without_checksums_are_differences(result, verify, name, content):
    (result / CHECKSUMS).unlink()
    (result / name).write_bytes(content)
    code, _, err = verify(result, base=None)
    assert code == 1
    assert err.count("\n") == 1


def test_another_dense_model_is_refused(results, verify):
    code, _, err = verify(results / "pruned", base="other")
    assert code == 2
    assert "whose weights differ" in err


def test_checksums_never_lead_out_of_the_folder(result, verify):
    with (result / CHECKSUMS).open("a") as checksums:
        checksums.write(f"{'0' * 64}  ../dense/config.json\n")
    code, _, err = verify(result, base=None)
    assert code == 1
    assert f"{CHECKSUMS}; got" in err


def test_a_dense_model_has_no_plan_and_an_empty_folder_nothing(results, verify, tmp_path):
    code, found, _ = verify(results / "dense", base=None)
    assert code == 0
    assert [name for name, status in found.items() if status == PASSED] == ["tensors"]
    assert verify(tmp_path, base=None)[0] == 2
    assert verify(tmp_path / "nowhere", base=None)[0] == 2


def test_a_recovered_model_is_not_compared_with_the_dense_one(result, verify):
    (result / RECOVERY_REPORT).write_text("{}")
    (result / "prune_plan.json").unlink()
    (result / CHECKSUMS).unlink()
    code, found, _ = verify(result)
    assert code == 0
    assert found["plan"] == found["tensors"] == PASSED  # the plan of its report
    assert found["dense model"] == found["logits"] == NOT_APPLIED


@pytest.mark.parametrize(("target", "tensors"), [("decilm", NOT_APPLIED), ("stock", PASSED)])
def test_exports_have_checksums(results, verify, tmp_path, target, tensors):
    folder = export(results / "pruned", target, tmp_path / target, self_check=False).folder
    code, found, _ = verify(folder, base=None)
    assert (code, found["checksums"], found["tensors"]) == (0, PASSED, tensors)
    flip(folder / WEIGHTS, -1, bit=0)
    assert verify(folder, base=None)[2].startswith(f"error: {WEIGHTS} has SHA-256 ")


def test_refitted_weights_are_named_and_the_others_compared(prune, capsys):
    code, folder = prune("refitted", "--skip_evaluation")
    assert code == 0
    capsys.readouterr()
    base = str(folder.parent / "llama-8q4kv")
    assert main([str(folder), "--base_model", base]) == 0
    out = capsys.readouterr().out
    assert "were refitted (model.layers." in out
    assert f"{NOT_APPLIED}: weights were refitted" in out
    tensors = load_file(folder / WEIGHTS)
    tensors[NAME][2, 5] = struct.unpack("f", struct.pack("f", tensors[NAME][2, 5].item() + 1e-3))[0]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / BIN_NAME).unlink()
    (folder / CHECKSUMS).unlink()
    assert main([str(folder), "--base_model", base]) == 1
    assert f"{NAME}[2, 5]" in capsys.readouterr().err
