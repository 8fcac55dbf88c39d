"""State files are taken up whole or not at all, and nothing else is taken for one."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hgsp.console.state_files import check_state_folder, read_state, write_state
from hgsp.errors import InputError

CONTENT = {"steps": [1, 2.5, None], "name": "ü"}


def test_state_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "state.json"
    assert read_state(path, "search", dict[str, Any]) is None
    write_state(path, "search", CONTENT)
    assert read_state(path, "search", dict[str, Any]) == CONTENT


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_is_noticed_and_the_file_set_aside(tmp_path, data):
    path = tmp_path / "state.json"
    write_state(path, "search", CONTENT)
    whole = path.read_bytes()
    position = data.draw(st.integers(len('{"hgsp_state": "search"'), len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(damaged)
    read = read_state(path, "search", dict[str, Any])
    if read is None:
        assert not path.exists()
        assert (tmp_path / "state.json.damaged").read_bytes() == damaged
    else:  # white space, or another spelling of the same content
        assert read == CONTENT


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "no json", '{"hgsp_state": "training"}', json.dumps({"accepted": [True]})],
)
def test_a_file_that_is_no_such_state_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(InputError, match="something else"):
        read_state(path, "search", dict[str, Any])
    assert path.read_text() == text


@pytest.mark.parametrize(("schema", "content"), [(dict[str, int], {"a": "b"}), (dict[str, list[str]], {"a": [1]})])
def test_state_of_another_schema_is_set_aside(tmp_path, schema, content, caplog):
    path = tmp_path / "state.json"
    write_state(path, "search", content)
    assert read_state(path, "search", schema) is None
    assert (tmp_path / "state.json.damaged").is_file()
    assert "state.json is damaged (a" in caplog.text


def test_a_folder_whose_state_file_was_set_aside_is_still_known(tmp_path):
    write_state(tmp_path / "settings.json", "training", CONTENT)
    assert read_state(tmp_path / "settings.json", "training", dict[str, int]) is None
    check_state_folder(tmp_path, "settings.json", "training")


def test_a_folder_with_other_content_is_refused_and_an_empty_one_is_not(tmp_path):
    folder = tmp_path / "p20.reconstruction"
    check_state_folder(folder, "finished.json", "reconstruction")
    folder.mkdir()
    check_state_folder(folder, "finished.json", "reconstruction")
    (folder / ".0123abcd-finished.json").touch()  # a kill before the file got its name
    check_state_folder(folder, "finished.json", "reconstruction")
    (folder / "model.safetensors").write_text("a complete result")
    with pytest.raises(InputError, match="something else"):
        check_state_folder(folder, "finished.json", "reconstruction")
    write_state(folder / "finished.json", "reconstruction", CONTENT)
    check_state_folder(folder, "finished.json", "reconstruction")
