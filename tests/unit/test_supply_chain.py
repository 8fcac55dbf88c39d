"""What is installed and trusted: hashes of every file, licences of every package, and no network on import."""

import re
import runpy
import subprocess
import sys
from importlib import metadata

import pytest

from conftest import REPOSITORY

LOCK = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([\w.-]+) \| ([\w.!+-]+) \| (.+) \|$", re.MULTILINE)
#: Imports every module; any use of a socket or a resolver ends the process.
IMPORT_ALL = """
import importlib, pkgutil, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        raise SystemExit(f"{event}{arguments}")

sys.addaudithook(refuse)
for package in (importlib.import_module("hgsp"), importlib.import_module("evaluation")):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name not in ("hgsp.__main__", "hgsp.exports.engine_log_probs", "hgsp.models.vllm_plugin"):
            importlib.import_module(module.name)
print(len(sys.modules))
"""


@pytest.fixture(scope="module")
def licenses():
    pytest.importorskip("tomllib")
    return runpy.run_path(str(REPOSITORY / "scripts" / "docs_licenses.py"))


@pytest.fixture(scope="module")
def page(licenses):
    rows = ROW.findall(licenses["PAGE"].read_text(encoding="utf-8"))
    return {name: (version, text) for name, version, text in rows if name != "package"}


def test_every_locked_package_has_hashes_and_no_address():
    entries = re.split(r"^(?=[\w.-]+==)", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    assert len(entries) > 100
    for entry in entries:
        name, *hashes = entry.replace("\\\n", "").split()
        assert re.fullmatch(r"[\w.-]+==[\w.!+-]+", name)
        assert hashes, name
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", part) for part in hashes), name


def test_every_requirement_of_the_project_is_locked(licenses):
    project = licenses["tomllib"].loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(text for texts in project["optional-dependencies"].values() for text in texts),
    ]
    locked = licenses["locked_versions"]()
    for text in wanted:
        requirement = licenses["Requirement"](text)
        name = licenses["canonicalize_name"](requirement.name)
        assert name == "hgsp" or requirement.specifier.contains(locked[name]), text


def test_the_page_of_licences_lists_what_is_locked(licenses, page):
    assert {name: version for name, (version, _) in page.items()} == licenses["locked_versions"](), "run `make docs`"


def test_the_licences_are_those_of_the_installed_packages(licenses, page):
    installed = {licenses["canonicalize_name"](found.name): found.version for found in metadata.distributions()}
    same = [name for name, (version, _) in page.items() if installed.get(name, "").split("+")[0] == version]
    assert same
    for name in set(same) - {"torch"}:  # its builds differ
        assert licenses["license_of"](name) == page[name][1], f"{name}: run `make docs`"


@pytest.mark.slow
def test_no_module_opens_a_connection_when_it_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 1000
