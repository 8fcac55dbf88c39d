"""Chat templates of others: rendered as transformers renders them, and ended when they exceed a limit."""

import copy
import threading
import time

import pytest

from hgsp.data import chat_templates
from hgsp.data.chat_templates import ChatRefusedError, prints_date, render_chat
from hgsp.errors import InputError

CHAT = [
    {"role": "system", "content": "Be brief, ÄÖ 日本."},
    {"role": "user", "content": "Hi\n\n</s>"},
    {"role": "assistant", "content": "Hello"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def templated(tokenizer):
    """``templated(template)`` is the tokenizer with it."""

    def make(template):
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        return own

    return make


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f", "parameters": {}}}]])
def test_a_chat_is_rendered_as_transformers_renders_it(templated, tools):
    own = templated(TEMPLATE)
    named = {"tools": tools} if tools else {}
    expected = [
        own.apply_chat_template(CHAT[:turns], tokenize=False, add_generation_prompt=prompts, **named)
        for turns, prompts in ((2, True), (3, False), (None, False))
    ]
    assert render_chat(own, CHAT, [(2, True), (3, False), (None, False)], "row 1", **named) == expected


def test_a_template_of_several_is_chosen_as_transformers_chooses_it(templated):
    own = templated({"default": "plain", "tool_use": "with tools"})
    assert render_chat(own, CHAT, [(None, False)], "row 1") == ["plain"]
    assert render_chat(own, CHAT, [(None, False)], "row 1", tools=[{"name": "f"}]) == ["with tools"]
    with pytest.raises(ChatRefusedError, match="row 1"):
        render_chat(templated({"other": "x"}), CHAT, [(None, False)], "row 1")


FAILING = {
    "its own refusal": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "a syntax error": ("{% for %}", "Expected"),
    "a loop beyond the sandbox": ("{% for i in range(10**9) %}{% endfor %}", "too big"),
    "a recursive macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "a division": ("{{ 1 / 0 }}", "division"),
    "types": ("{{ 'a' + 1 }}", "str"),
    "an attribute that the sandbox hides": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "another file": ("{% include 'secret' %}", "loader"),
    "a message that is not there": ("{{ messages[7].content }}", "no element"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_is_refused_in_one_line_with_the_row(templated, name):
    template, words = FAILING[name]
    with pytest.raises(ChatRefusedError) as refusal:
        render_chat(templated(template), CHAT, [(None, False)], "rows.jsonl, line 3")
    message = str(refusal.value)
    assert words in message
    assert "for the roles system, user, assistant, in rows.jsonl, line 3" in message
    assert "\n" not in message


TOO_MUCH_MEMORY = {
    "a long text": "{{ 'a' * 10**9 }}",
    "a text beyond all memory": "{{ 'a' * 10**13 }}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "a wide number": "{{ '%2000000000d' % 1 }}",
    "a wide field": "{{ 'x' | center(2 * 10**9) }}",
    "a list": "{{ [0] * 10**9 }}",
}


@pytest.mark.parametrize("name", TOO_MUCH_MEMORY)
def test_a_template_that_fills_memory_is_refused_with_the_limit(templated, name):
    own = templated(TOO_MUCH_MEMORY[name])
    own.name_or_path = "some/model"
    with pytest.raises(
        InputError, match=r"10 s, 512 MiB of memory and 16,777,216 characters; got .*some/model, for row 1"
    ):
        render_chat(own, CHAT, [(None, False)], "row 1")


def test_a_template_that_writes_too_much_is_refused(templated):
    with pytest.raises(InputError, match="more than 16,777,216 characters"):
        render_chat(templated("{{ 'a' * 20_000_000 }}"), CHAT, [(None, False)], "row 1")


ENDLESS = {
    "loops within loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a number of many digits": "{{ 10**(10**9) }}",
    "only some chats": "{% if messages | length > 2 %}{{ 3**(10**9) % 7 }}{% endif %}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_ended_and_the_next_chat_is_rendered(templated, name, monkeypatch):
    """In a thread, where no signal could end it; the limit is far below the real one to keep the test short."""
    render_chat(templated(TEMPLATE), CHAT, [(None, False)], "row 1")  # the process has started
    monkeypatch.setattr(chat_templates, "MAX_SECONDS", 0.5)
    errors, start = [], time.perf_counter()

    def run():
        try:
            render_chat(templated(ENDLESS[name]), CHAT, [(None, False)], "row 1")
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert time.perf_counter() - start < 20
    assert "got more than 0.5 s by that of" in errors[0]


def test_a_template_that_prints_the_date_is_told_apart(templated):
    assert prints_date(templated("{{ strftime_now('%Y') }}"))
    assert prints_date(templated({"default": "x", "tool_use": "{{ strftime_now('%Y') }}"}))
    assert not prints_date(templated(TEMPLATE))
    assert not prints_date(templated(None))


def test_values_that_json_cannot_hold_are_given_as_text(templated):
    deep = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(InputError, match="row 1"):
        render_chat(templated(TEMPLATE), CHAT, [(None, False)], "row 1", tools=deep)
    chat = [*CHAT[:2], {"role": "assistant", "content": "x", "at": object}]
    assert render_chat(templated(TEMPLATE), chat, [(None, False)], "row 1")[0].endswith("<assistant>x</s>\n")
