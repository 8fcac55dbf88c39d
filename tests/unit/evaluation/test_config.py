"""Options of an evaluation: task names, aliases, similar names, and invalid values."""

import pytest

from hgsp.errors import InputError
from hgsp.evaluation.config import EvaluationConfig, MeasureConfig
from hgsp.evaluation.tasks import ALIASES, TASKS, ZERO_SHOT, is_text, parse_tasks


def config(**values):
    return EvaluationConfig(model_path="m", **values)


@pytest.mark.parametrize(
    ("names", "tasks"),
    [
        ("wikitext", ("wikitext2",)),
        ("wikitext,wikitext2, c4", ("wikitext2", "c4")),
        ("c4,wikitext", ("c4", "wikitext2")),
        ("zeroshot,piqa", ZERO_SHOT),
        ("ARC-Easy,arc_c,obqa,lambada_openai", ("arc_easy", "arc_challenge", "openbookqa", "lambada")),
        ("efficiency,", ("efficiency",)),
    ],
)
def test_aliases_and_repetition_give_each_task_once(names, tasks):
    assert parse_tasks(names) == tasks


def test_every_alias_stands_for_tasks():
    assert {task for tasks in ALIASES.values() for task in tasks} <= set(TASKS)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("wikitext1", "wikitext"), ("hellaswagg", "hellaswag"), ("arc_challange", "arc_challenge"), ("lamda", "lambada")],
)
def test_an_unknown_task_is_refused_with_the_nearest_names(name, nearest):
    with pytest.raises(InputError, match=f"unknown task '{name}'; did you mean .*{nearest}"):
        config(tasks=f"c4,{name}")


def test_a_task_like_no_other_is_refused_with_all_names():
    with pytest.raises(InputError, match=r"winogrande.*check the spelling"):
        config(tasks="xyzzy")


def test_a_text_file_is_a_perplexity_task(text_file):
    assert parse_tasks(str(text_file)) == (str(text_file),)
    assert is_text(str(text_file))
    assert [task for task in TASKS if is_text(task)] == ["wikitext2", "ptb", "c4", "builtin"]


def test_a_comma_in_a_path_is_part_of_it(tmp_path):
    path = tmp_path / "a,b.txt"
    path.write_text("x")
    assert config(tasks=str(path)).task_names == (str(path),)
    assert MeasureConfig(eval_tasks=str(path)).evaluation_texts == (str(path),)
    assert MeasureConfig(eval_tasks=" c4, wikitext,c4,").evaluation_texts == ("c4", "wikitext2")
    assert MeasureConfig(eval_tasks="").evaluation_texts == ()


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"seq_len": (1,)}, "--seq_len"),
        ({"limit": 0}, "--limit"),
        ({"max_windows": -1}, "--max_windows"),
        ({"batch_size": 0}, "--batch_size"),
        ({"repeats": 0}, "--repeats"),
        ({"dtype": "int8"}, "--dtype"),
        ({"compare": True}, "--compare"),
        ({"device": "auto"}, "--device"),
        ({"tasks": " , "}, "--tasks"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, flag):
    with pytest.raises(InputError, match=flag):
        config(**values)


def test_windows_follow_the_limit_unless_given_their_own():
    assert config().options.window_limit is None
    assert config(limit=3).options.window_limit == 3
    assert config(limit=3, max_windows=7).options.window_limit == 7


def test_one_or_several_window_lengths():
    assert config(seq_len=128).seq_len == (128,)
    assert config(seq_len=[256, 128, 256]).seq_len == (256, 128)
