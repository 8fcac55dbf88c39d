"""The wheel, as somebody without the repository has it: its files, its page, its types, and no clash of names."""

import email
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import hgsp
import setup as packaging
from conftest import REPOSITORY

SOURCES = ("hgsp", "evaluation", "run_global_pruning.py", "finetune_lora.py", "setup.py", "pyproject.toml", "README.md")
SCRIPT = """\
import hgsp
model, tokenizer = hgsp.load("org/name")
reveal_type(hgsp.score(model, hgsp.calibration("wikitext2", tokenizer)).select(ratio=0.2))
"""


def run(command, folder, **environment):
    """Run a command outside the repository, with the given variables alone added to those of the system."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("HGSP_", "PYTHON", "PYTEST"))}
    return subprocess.run(
        command, cwd=folder, env=outside | environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout; build products stay in the temporary folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*SOURCES, "LICENSE"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    done = run(pip, source)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel, unpacked into a folder of packages."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed):
    (file,) = installed.glob("*.dist-info/METADATA")
    return email.message_from_string(file.read_text(encoding="utf-8"))


def test_both_packages_are_typed(installed):
    assert (installed / "hgsp" / "py.typed").is_file()
    assert (installed / "evaluation" / "py.typed").is_file()


def test_the_metadata_says_who_what_and_for_whom(metadata):
    assert metadata["Author"] == "hgsp contributors"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert "pruning" in metadata["Keywords"]


def test_the_page_has_no_link_that_works_in_the_repository_alone(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload()
    assert page.startswith("# ")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_links_of_a_known_repository_become_absolute():
    readme = "[a](docs/A.md#b) ![plot](p.png) [web](https://x.org) [here](#there) [docs/A.md](docs/A.md)"
    host = "https://example.org/hgsp"
    assert packaging.description(readme, host) == (
        f"[a]({host}/blob/HEAD/docs/A.md#b) ![plot]({host}/raw/HEAD/p.png) [web](https://x.org) [here](#there) "
        f"[docs/A.md]({host}/blob/HEAD/docs/A.md)"
    )
    assert packaging.description(readme, None) == ("a (docs/A.md#b) plot [web](https://x.org) [here](#there) docs/A.md")
    assert packaging.repository_url(f'[project.urls]\nRepository = "{host}/"\n') == host
    assert packaging.repository_url("[project]\n") is None


def test_the_citation_names_this_version():
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {hgsp.__version__}\n" in citation
    assert "  - name: hgsp contributors\n" in citation


def test_a_folder_called_evaluation_is_no_obstacle(installed, tmp_path):
    """Ours is shadowed, as Python has it; the command and the library do not use it."""
    foreign = tmp_path / "evaluation"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise ImportError('somebody else wrote this')\n")
    code = "import sys; from hgsp.cli.main import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join(map(str, (tmp_path, installed)))
    done = run([sys.executable, "-c", code, "evaluate", "--model_path", "./nowhere"], tmp_path, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    code = "from hgsp.evaluation.metrics.ppl import PPLMetric; print(PPLMetric.__name__)"
    assert run([sys.executable, "-c", code], tmp_path, PYTHONPATH=path).stdout == "PPLMetric\n"


def test_the_documented_import_path_works_from_the_wheel(installed, tmp_path):
    code = "from evaluation.metrics.ppl import PPLMetric; print(PPLMetric.__module__)"
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed))
    assert done.stdout == "hgsp.evaluation.metrics.ppl\n", done.stderr


def test_a_user_s_script_has_types(installed, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = tmp_path / "environment"
    made = run([sys.executable, "-m", "venv", "--without-pip", environment], tmp_path)
    assert made.returncode == 0, made.stderr
    (site,) = environment.glob("[Ll]ib/**/site-packages")
    shutil.copytree(installed, site, dirs_exist_ok=True)
    (python,) = environment.glob("*/python*3.exe" if os.name == "nt" else "bin/python3")
    done = run([sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "script.py"], tmp_path)
    assert 'Revealed type is "hgsp.pruning.plan.PrunePlan"' in done.stdout, done.stdout + done.stderr
    assert "Success: no issues found in 1 source file" in done.stdout
