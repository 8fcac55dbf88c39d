"""A hub that accepts connections and never answers: asked once, within a limit, and then left alone."""

import os
import socket
import time

import pytest
from huggingface_hub import constants

from hgsp.console import hub_access
from hgsp.data.texts import EVALUATE, load_text
from hgsp.errors import InputError
from hgsp.models.hub import with_revision
from hgsp.models.hub_upload import check_upload
from hgsp.models.loading import inspect_model
from hgsp.models.tokenizers import load_tokenizer
from hgsp.recovery.instructions import load_rows


@pytest.fixture
def silent_hub(monkeypatch):
    """A server that accepts connections and never answers, as the hub; returns the number of connections so far."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    server.setblocking(False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "FIRST_ANSWER", 0.2)
    hub_access.ask_hub.cache_clear()
    kept = []

    def connections():
        while True:
            try:
                kept.append(server.accept())
            except BlockingIOError:
                return len(kept)

    yield connections
    hub_access.ask_hub.cache_clear()
    for connection, _ in kept:
        connection.close()
    server.close()


USES = {
    "a model": lambda: inspect_model("some/model"),
    "a tokenizer": lambda: load_tokenizer("some/model"),
    "a revision": lambda: load_tokenizer("some/model@main"),
    "rows": lambda: load_rows("some/data"),
    "a text": lambda: load_text("wikitext2", EVALUATE),
    "a stream": lambda: load_text("c4", EVALUATE),
    "an upload": lambda: check_upload("ann/model"),
}


@pytest.mark.parametrize("use", USES)
def test_a_hub_that_never_answers_is_one_line_within_seconds(use, silent_hub, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("hgsp.models.hub_upload.get_token", lambda: "hf_secret")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("HGSP_DATA_DIR", raising=False)
    start = time.perf_counter()
    with pytest.raises(InputError) as refusal:
        USES[use]()
    assert "\n" not in str(refusal.value)
    assert time.perf_counter() - start < 60  # imports of libraries, on a busy machine, included
    assert silent_hub() == 1
    (line,) = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert constants.ENDPOINT in line
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_nothing_is_asked_for_what_is_on_this_machine_or_offline(silent_hub, tmp_path, monkeypatch):
    assert with_revision(tmp_path) == (str(tmp_path), {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert with_revision("model") == ("model", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert with_revision("some/model@v1") == ("some/model", {"revision": "v1"})
    assert silent_hub() == 0


def test_a_hub_that_answers_is_used_with_a_limit_on_every_answer(silent_hub, monkeypatch):
    from huggingface_hub.utils import get_session

    monkeypatch.setattr(type(get_session()), "head", lambda *_, **__: None)
    hub_access.ask_hub()
    assert not constants.HF_HUB_OFFLINE
    assert get_session().timeout.read == hub_access.LATER_ANSWERS
