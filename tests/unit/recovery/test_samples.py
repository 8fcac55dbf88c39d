"""Training samples: learned tokens, ends of text, truncation, held-out split, packing and padding."""

import json

import pytest
import torch
from transformers import ByT5Tokenizer

from hgsp.data.fields import Row
from hgsp.errors import InputError
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.instructions import passage_of
from hgsp.recovery.samples import IGNORED, pack, tokenize_passages
from hgsp.recovery.training_text import load_training_text
from recovering import sample

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
WITH_INPUT = {"instruction": "Translate.", "input": "chat", "output": "cat"}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ciao"},
]
#: ChatML, whose turns end with the tokenizer's end of text, as SmolLM2's and Qwen's chat models have it.
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture
def chatty(tokenizer):
    """The tokenizer with a chat template, removed again afterwards."""
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


@pytest.fixture
def rows_file(tmp_path):
    """``rows_file(rows)`` writes them as JSON lines and returns the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    return write


def config(data_path, **changes):
    return TrainingConfig(data_path=data_path, **changes)


def samples_of(rows, tokenizer, cutoff_len=512, everything=False):
    passages = [passage_of(Row(row, f"row {number}"), tokenizer) for number, row in enumerate(rows, 1)]
    return tokenize_passages(passages, tokenizer, cutoff_len, everything=everything)[0]


def learned_text(sample, tokenizer):
    return tokenizer.decode([token for token in sample.labels if token != IGNORED])


@pytest.mark.parametrize(("row", "answer"), [(ALPACA, "Blue."), (WITH_INPUT, "cat"), ({"text": "cat"}, "at")])
def test_only_the_answer_and_one_end_are_learned(row, answer, tokenizer):
    """Nothing predicts the first token of a plain text."""
    (found,) = samples_of([row], tokenizer)
    assert learned_text(found, tokenizer) == answer + "</s>"
    assert (found.input_ids == tokenizer.eos_token_id).sum() == 1
    assert found.input_ids[-1] == tokenizer.eos_token_id


def test_an_input_is_told_apart_from_the_instruction(tokenizer):
    text = passage_of(Row(WITH_INPUT, "row 1"), tokenizer).text
    assert text.index("Translate.") < text.index("Input") < text.index("chat") < text.index("Response")
    assert "Input" not in passage_of(Row(ALPACA, "row 1"), tokenizer).text


def test_train_on_inputs_learns_all_but_the_first_token(tokenizer):
    (found,) = samples_of([ALPACA], tokenizer, everything=True)
    assert found.labels[0] == IGNORED
    assert (found.labels[1:] == found.input_ids[1:]).all()


def test_every_assistant_turn_of_a_chat_is_learned_as_the_template_writes_it(chatty):
    (found,) = samples_of([{"messages": CHAT}], chatty)
    assert learned_text(found, chatty) == "Hello</s>\nCiao</s>"
    assert chatty.decode(found.input_ids).endswith("Ciao</s>")


def test_what_follows_the_last_answer_is_left_out(chatty):
    (found,) = samples_of([{"messages": [*CHAT, {"role": "user", "content": "More?"}]}], chatty)
    assert "More" not in chatty.decode(found.input_ids)


def test_a_template_without_the_end_of_text_gets_one(chatty):
    chatty.chat_template = TEMPLATE.replace("</s>", "[end]")
    (found,) = samples_of([{"messages": CHAT}], chatty)
    assert learned_text(found, chatty).endswith("Ciao[end]\n</s>")
    assert (found.labels == chatty.eos_token_id).sum() == 1


def test_a_chat_without_a_template_is_written_under_headings(tokenizer):
    (found,) = samples_of([{"messages": CHAT}], tokenizer)
    assert learned_text(found, tokenizer) == "HelloCiao</s>"
    assert "Be brief." in tokenizer.decode(found.input_ids)


def test_a_tokenizer_that_ends_texts_itself_does_not_end_them_twice(tokenizer):
    class Ending:
        chat_template, eos_token_id = None, tokenizer.eos_token_id

        def __call__(self, texts, **options):
            encoded = tokenizer(texts, **options)
            ids = [[*row, tokenizer.eos_token_id] for row in encoded["input_ids"]]
            return {"input_ids": ids, "offset_mapping": [[*row, (0, 0)] for row in encoded["offset_mapping"]]}

    (found,) = samples_of([ALPACA], Ending())
    assert learned_text(found, tokenizer) == "Blue.</s>"


def test_text_that_was_written_with_ends_in_it_keeps_them_all(tokenizer):
    """Rows rendered elsewhere by a chat template keep their final end token, and no second one follows."""
    (found,) = samples_of([{"text": "<s>user\nHi</s>\n<s>assistant\nHello</s>\n"}], tokenizer)
    assert tokenizer.decode(found.input_ids) == "<s>user\nHi</s>\n<s>assistant\nHello</s>"


def test_a_cut_sample_does_not_learn_to_end(tokenizer):
    """An end token there would teach the model to stop in the middle of a sentence."""
    passage = passage_of(Row(ALPACA, "row 1"), tokenizer)
    (short,), notes = tokenize_passages([passage], tokenizer, passage.answers[0][0] + 3, everything=False)
    assert learned_text(short, tokenizer) == "Blu"
    assert (notes["cut"], notes["dropped"]) == (1, 0)


def test_a_sample_whose_answer_is_cut_away_is_dropped_and_counted(tokenizer):
    passages = [passage_of(Row(row, "row 1"), tokenizer) for row in (ALPACA, {"text": "short"})]
    kept, notes = tokenize_passages(passages, tokenizer, 20, everything=False)
    assert len(kept) == 1
    assert (notes["cut"], notes["dropped"]) == (1, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "the fields prompt in rows.jsonl, line 3"),
        ({"instruction": "x"}, "'output' of every row"),
        ({"instruction": "x", "output": None}, "'output' of every row"),
        ({"text": 5}, "'text' of every row"),
        ({"messages": []}, "list of role and content"),
        ({"messages": [{"role": "user", "content": "x"}]}, "an assistant turn"),
        (
            {"messages": [{"content": "x"}]},
            "text in 'messages.0.role' of every row; got only the fields content, in rows",
        ),
    ],
)
def test_rows_that_cannot_be_read_are_refused_by_their_number(row, message, tokenizer):
    with pytest.raises(InputError, match=message):
        passage_of(Row(row, "rows.jsonl, line 3"), tokenizer)


EMPTY = {
    "instruction": {"instruction": "x", "output": "  "},
    "text": {"text": ""},
    "chat": {"messages": [*CHAT[:2], {"role": "assistant", "content": " "}]},
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_rows_with_an_empty_answer_are_skipped_and_counted(kind, template, rows_file, chatty):
    chatty.chat_template = template
    text = load_training_text(config(rows_file([ALPACA, EMPTY[kind], ALPACA])), chatty)
    assert (len(text.train), text.description["samples"], text.description["empty_samples"]) == (2, 2, 1)
    assert text.warnings == ["rows skipped because their answers are empty: 1"]
    with pytest.raises(InputError, match="none: 1 with an empty answer"):
        load_training_text(config(rows_file([EMPTY[kind]])), chatty)


@pytest.mark.parametrize("empty", [2, 4])
def test_an_empty_turn_among_others_is_not_learned(empty, chatty):
    turns = [turn | {"content": ""} if index == empty else turn for index, turn in enumerate(CHAT)]
    (found,) = samples_of([{"messages": turns}], chatty)
    assert learned_text(found, chatty) == {2: "Ciao</s>", 4: "Hello</s>"}[empty]


def test_a_template_that_refuses_the_roles_is_one_line(chatty):
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        passage_of(Row({"messages": CHAT}, "row 1"), chatty)


def test_a_chat_that_begins_with_an_answer_is_refused_by_its_number(chatty):
    with pytest.raises(InputError, match=r"got rows\.jsonl, line 3, which begins with an assistant turn"):
        passage_of(Row({"messages": CHAT[2:]}, "rows.jsonl, line 3"), chatty)


TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
WITH_TOOLS = TEMPLATE.replace("{% for", "{% if tools %}{{ tools | tojson }}{% endif %}{% for", 1).replace(
    "{{ m['content'] }}", "{{ m['content'] or '' }}{{ m['tool_calls'] | tojson if m['tool_calls'] else '' }}"
)


def passage(row, tokenizer):
    return passage_of(Row(row, "rows.jsonl, line 3"), tokenizer)


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_tools_are_used_where_the_template_can_else_counted(tools, chatty):
    row = {"messages": CHAT, "tools": tools}
    assert passage(row, chatty).unused == ("tools",)
    assert passage(row, chatty).text == passage({"messages": CHAT}, chatty).text
    chatty.chat_template = WITH_TOOLS
    assert passage(row, chatty).unused == ()
    assert '"clock"' in passage(row, chatty).text
    chatty.chat_template = None
    assert passage(row, chatty).unused == ("tools",)


def test_a_turn_that_calls_a_tool_is_learned_where_the_template_shows_it(chatty):
    calls = [{"function": {"name": "clock", "arguments": {}}}]
    row = {"messages": [*CHAT[:2], {"role": "assistant", "content": None, "tool_calls": calls}]}
    assert passage(row, chatty).unused == ("messages.tool_calls",)
    chatty.chat_template = WITH_TOOLS
    found = passage(row, chatty)
    assert found.unused == ()
    (learned,) = found.answers
    assert '"clock"' in found.text[slice(*learned)]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_system_text_beside_a_chat_is_its_first_turn(template, chatty):
    chatty.chat_template = template
    row = {"messages": CHAT[1:], "system": "Be brief."}
    assert passage(row, chatty) == passage({"messages": CHAT}, chatty)
    assert passage({**row, "messages": CHAT}, chatty).unused == ("system",)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"),
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE,
    ],
)
def test_a_system_text_that_the_template_ignores_or_refuses_is_counted(template, chatty):
    chatty.chat_template = template
    found = passage({"messages": CHAT[1:], "system": "Be brief."}, chatty)
    assert found.unused == ("system",)
    assert "brief" not in found.text


def test_system_and_history_of_an_instruction_come_before_it_and_its_answers_are_learned(tokenizer):
    row = {**WITH_INPUT, "system": "Be brief.", "history": [["Hi", "Hello"], ["Bye", ""]]}
    found = passage(row, tokenizer)
    assert found.unused == ()
    assert [found.text[start:end] for start, end in found.answers] == ["Hello", "cat"]
    assert found.text.startswith("Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye")
    assert found.text.endswith(passage(WITH_INPUT, tokenizer).text)
    for nothing in (None, "", []):
        assert passage({**WITH_INPUT, "system": nothing, "history": nothing}, tokenizer) == passage(
            WITH_INPUT, tokenizer
        )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ALPACA, "history": [["one"]]}, "pairs of question and answer in 'history'"),
        ({**ALPACA, "history": "text"}, "an object or a list in 'history'"),
        ({**ALPACA, "history": [["q", None]]}, r"text in 'history.0\[1\]'"),
        ({**ALPACA, "system": ["x"]}, "text in 'system'"),
        ({"messages": CHAT, "tools": "clock"}, "list of objects, or JSON text of one in 'tools'"),
        ({"messages": CHAT, "tools": ["clock"]}, "in 'tools' of every row"),
        ({"messages": "[]"}, "list of role and content in 'messages'"),
        ({"messages": [*CHAT, "Hello"]}, "an object or a list in 'messages.5'"),
        ({"messages": [*CHAT, {"role": ["user"], "content": "x"}]}, "text in 'messages.5.role'"),
        ({"messages": [*CHAT, {"role": "user", "content": [{"type": "text"}]}]}, "text in 'messages.5.content'"),
        ({"messages": [*CHAT, {"role": "user", "content": "\ud83d"}]}, "without halves of surrogate pairs"),
        ({"messages": CHAT, "tools": [{"name": "\ud83d"}]}, "surrogate"),
        ({"instruction": "x", "output": "a\0b"}, "without NUL characters in 'output'"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_refused_with_line_and_field(row, words, chatty):
    chatty.chat_template = "{{ tools[0].name if tools else '' }}" + TEMPLATE
    with pytest.raises(InputError, match=words) as refusal:
        passage(row, chatty)
    assert "rows.jsonl, line 3" in str(refusal.value)
    assert str(refusal.value).isprintable()


def test_fields_that_are_not_used_are_named_and_counted(rows_file, tokenizer):
    rows = [{**ALPACA, "id": 1, "images": []}, {**ALPACA, "images": ["a.png"], "documents": None}, ALPACA, ALPACA]
    text = load_training_text(config(rows_file(rows)), tokenizer)
    assert text.description["unused_fields"] == {"id": 1, "images": 1}
    assert text.warnings == ["fields that are no part of the training text, with their rows: id (1), images (1)"]


@pytest.mark.parametrize("rows", [[{"messages": CHAT}] * 3, [ALPACA] * 3])
def test_a_template_that_prints_the_date_is_a_warning_where_it_is_used(rows, rows_file, chatty):
    chatty.chat_template = "{{ strftime_now('%d %B %Y') }}" + TEMPLATE
    text = load_training_text(config(rows_file(rows)), chatty)
    assert [warning for warning in text.warnings if "date" in warning] == text.warnings
    assert len(text.warnings) == ("messages" in rows[0])


def test_a_table_of_instructions_is_read(tmp_path, tokenizer):
    (tmp_path / "rows.CSV").write_text("instruction,output\n" + "Name a colour.,Blue.\n" * 3)
    assert load_training_text(config(str(tmp_path / "rows.CSV")), tokenizer).description["samples"] == 3


def test_a_tokenizer_that_cannot_tell_where_tokens_stand_is_refused(rows_file):
    with pytest.raises(InputError, match=r"a fast tokenizer.*ByT5Tokenizer"):
        load_training_text(config(rows_file([ALPACA])), ByT5Tokenizer())


def test_the_split_is_seeded_and_leaves_nothing_out(rows_file, tokenizer):
    path = rows_file([{"text": f"row {number}"} for number in range(40)])
    first, again, other = (load_training_text(config(path, seed=seed), tokenizer) for seed in (1, 1, 2))
    texts = [[tokenizer.decode(s.input_ids) for s in part] for part in (first.train, first.held_out)]
    assert len(texts[1]) == 2
    assert {*texts[0], *texts[1]} == {f"row {number}</s>" for number in range(40)}
    assert texts[0] == [tokenizer.decode(s.input_ids) for s in again.train]
    assert texts[0] != [tokenizer.decode(s.input_ids) for s in other.train]


def test_the_same_rows_are_held_out_whatever_is_learned_of_them(rows_file, tokenizer):
    """Otherwise a comparison of methods would test one on another's training rows."""
    rows = [{"instruction": "x" * (n % 30), "output": f"answer {n}"} for n in range(1, 30)]
    path = rows_file([row for row in rows if row["instruction"]])
    flags = {"val_size": 8, "cutoff_len": 60}
    answers, everything = (load_training_text(config(path, train_on_inputs=on, **flags), tokenizer) for on in (0, 1))
    texts = [{tokenizer.decode(s.input_ids) for s in text.held_out} for text in (answers, everything)]
    assert answers.description["dropped_samples"] > 0
    assert texts[0] < texts[1]


def test_val_size_is_taken_at_its_word_and_refused_when_nothing_is_left(rows_file, tokenizer):
    path = rows_file([{"text": f"row {number}"} for number in range(5)])
    assert len(load_training_text(config(path, val_size=0), tokenizer).held_out) == 0
    assert len(load_training_text(config(path, val_size=4), tokenizer).train) == 1
    with pytest.raises(InputError, match="--val_size below the number of samples, 5"):
        load_training_text(config(path, val_size=5), tokenizer)


@pytest.mark.parametrize("rows", [[], [ALPACA]])
def test_nothing_to_learn_is_refused(rows, rows_file, tokenizer):
    with pytest.raises(InputError, match=r"rows with|samples with an answer to learn"):
        load_training_text(config(rows_file(rows), cutoff_len=8), tokenizer)


def test_a_data_set_that_is_nowhere_is_refused_with_the_way_out(tokenizer, monkeypatch):
    def gone(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("datasets.load_dataset", gone)
    with pytest.raises(InputError, match=r"'some/data'.*offline.*jsonl"):
        load_training_text(config("some/data"), tokenizer)


def test_a_folder_that_is_no_data_set_is_refused(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.json").write_text("no rows")
    with pytest.raises(InputError, match=r"rows' \(DatasetGeneration.*jsonl"):
        load_training_text(config(str(tmp_path / "rows")), tokenizer)


def test_rows_of_the_hub_are_those_of_its_train_split(tokenizer, monkeypatch):
    asked = {}
    monkeypatch.setattr("datasets.load_dataset", lambda name, **options: asked.update({name: options}) or [ALPACA] * 3)
    assert load_training_text(config("some/data"), tokenizer).description["samples"] == 3
    assert asked == {"some/data": {"split": "train"}}


def test_distilling_learns_every_token(rows_file, tokenizer):
    text = load_training_text(config(rows_file([ALPACA] * 2), distill_from="teacher"), tokenizer)
    assert text.description["learned"] == "every token"
    assert text.train[0].num_learned == len(text.train[0].input_ids) - 1


def test_a_plain_text_is_read_in_full_windows_without_ends(text_file, tokenizer):
    text = load_training_text(config(str(text_file), cutoff_len=100, val_size=0), tokenizer)
    assert len(text.train) == len(tokenizer(text_file.read_text())["input_ids"]) // 100
    assert text.description["learned"] == "every token"
    assert all(len(s.input_ids) == 100 and tokenizer.eos_token_id not in s.input_ids for s in text.train)


def test_a_plain_text_shorter_than_a_window_is_refused_with_the_way_out(text_file, tokenizer):
    with pytest.raises(InputError, match=r"one window of 30000 tokens.*lower --cutoff_len"):
        load_training_text(config(str(text_file), cutoff_len=30000), tokenizer)


def test_texts_of_a_list_contribute_equally_many_tokens(rows_file, text_file, tokenizer):
    """The shorter one whole, and nothing of it twice; each holds out its share of the rows."""
    rows = rows_file([{"text": f"row number {number}"} for number in range(40)])
    text = load_training_text(config(f"{rows},{text_file}", cutoff_len=16, val_size=5), tokenizer)
    short, long = (
        load_training_text(config(str(path), cutoff_len=16, val_size=size), tokenizer)
        for path, size in ((rows, 3), (text_file, 2))
    )
    used = [sample.input_ids.tolist() for sample in text.train]
    num_short, num_long = len(short.train), len(text.train) - len(short.train)
    assert used == [sample.input_ids.tolist() for sample in (*short.train, *long.train[:num_long])]
    assert len(text.held_out) == 5
    first, second = text.description["texts"]
    assert first == short.description["texts"][0]
    assert first["train_tokens"] - 16 < second["train_tokens"] <= first["train_tokens"]
    assert (first["left_out_samples"], second["left_out_samples"]) == (0, len(long.train) - num_long)
    assert text.description["source"] == f"rows.jsonl + {text_file.name}"
    assert num_short == 37


def test_a_list_of_answers_and_plain_texts_says_what_is_learned(rows_file, text_file, tokenizer):
    text = load_training_text(config(f"{rows_file([ALPACA] * 9)}, {text_file}"), tokenizer)
    assert text.description["learned"] == "answers, and every token of plain texts"
    assert [used.name for used in text.texts] == [str(rows_file([ALPACA] * 9)), str(text_file)]


def test_a_file_may_have_a_comma_in_its_name(rows_file, tokenizer):
    text = load_training_text(config(rows_file([ALPACA] * 9, "a, b.jsonl")), tokenizer)
    assert text.description["source"] == "a, b.jsonl"


def test_a_text_of_a_list_without_an_answer_is_refused_by_name(rows_file, tokenizer):
    useful, useless = rows_file([ALPACA] * 9), rows_file([ALPACA | {"output": ""}], "empty.jsonl")
    with pytest.raises(InputError, match=r"an answer to learn in .*empty\.jsonl"):
        load_training_text(config(f"{useful},{useless}"), tokenizer)


@pytest.mark.parametrize("value", ["", "a.jsonl,", "a.jsonl,,c4"])
def test_an_empty_name_in_a_list_is_refused(value):
    with pytest.raises(InputError, match=r"--data_path"):
        config(value)


def test_packing_keeps_order_and_length_and_says_where_samples_begin():
    packed = pack([sample(1, 2, 3), sample(4, 5), sample(6, 7, 8, 9)], 6)
    assert [s.input_ids.tolist() for s in packed] == [[1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert packed[0].starts == (0, 3)
    assert packed[0].labels.tolist() == [IGNORED, 2, 3, IGNORED, 5]


def test_a_batch_is_padded_and_masked():
    batch = Collator(pad_token_id=0, packed=False)([{"sample": sample(1, 2, 3)}, {"sample": sample(4, 5)}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [IGNORED, 5, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_packed_samples_do_not_see_each_other(make):
    """Packed or alone, every sample has the same logits."""
    model = make("llama-8q4kv")
    samples = [sample(*range(10, 22)), sample(*range(40, 47)), sample(*range(60, 75))]
    packed = pack(samples, 20)
    assert [len(s.starts) for s in packed] == [2, 1]
    batch = Collator(pad_token_id=0, packed=True)([{"sample": s} for s in packed])
    del batch["labels"]
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        alone = [model(torch.from_numpy(s.input_ids).long()[None]).logits[0] for s in samples]
    torch.testing.assert_close(torch.cat([logits[0, :19], logits[1, :15]]), torch.cat(alone), rtol=1e-4, atol=1e-5)
