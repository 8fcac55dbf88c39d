"""Calibration: distinct windows of real tokens, no padding, and an error if the text is too short."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from hgsp.data.calibration import build_calibration, tokenize
from hgsp.data.texts import CALIBRATE, Text, load_text
from hgsp.errors import InputError

ENGLISH = load_text("builtin", CALIBRATE)


def text_of(content):
    return Text("own", "whole file", "own.txt", "''", content)


@pytest.mark.parametrize("count", [1, 4])
def test_the_number_and_length_asked_for_come_out(tokenizer, count):
    calibration = build_calibration(ENGLISH, tokenizer, count, 48, seed=42)
    assert calibration.input_ids.shape == (count, 48)
    assert calibration.input_ids.dtype == torch.int64


def test_every_window_is_a_piece_of_the_text_without_padding(tokenizer):
    calibration = build_calibration(ENGLISH, tokenizer, 16, 48, seed=1)
    whole = tokenize(ENGLISH.content, tokenizer).numpy().tobytes()
    assert all(row.numpy().tobytes() in whole for row in calibration.input_ids)


def test_a_tokenizer_that_adds_bos_adds_none_here(tokenizer):
    """Windows come from the middle of a text; the single BOS of the whole text belongs to none of them."""
    adding = copy.deepcopy(tokenizer)
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    assert adding("text")["input_ids"][0] == 256
    assert torch.equal(tokenize("text", adding), tokenize("text", tokenizer))


def test_windows_are_distinct_even_where_the_text_repeats_itself(tokenizer):
    content = "".join(f"{number:08d}" for number in range(6)) * 10
    calibration = build_calibration(text_of(content), tokenizer, 6, 8, seed=0)
    assert len(torch.unique(calibration.input_ids, dim=0)) == 6
    with pytest.raises(InputError, match="use --nsamples 6"):
        build_calibration(text_of(content), tokenizer, 7, 8, seed=0)


def test_same_seed_same_windows_same_hash(tokenizer):
    first, again, other = (build_calibration(ENGLISH, tokenizer, 8, 32, seed) for seed in (42, 42, 43))
    assert torch.equal(first.input_ids, again.input_ids)
    assert first.sha256 == again.sha256
    assert first.sha256 != other.sha256


def test_too_short_a_text_is_an_error_and_not_a_loop(tokenizer):
    """Nothing is repeated, and the message gives the number of windows available."""
    with pytest.raises(InputError, match=r"text for 4 different windows of 10 tokens; got 3 in own \(35 tokens\)"):
        build_calibration(text_of("".join(map(chr, range(40, 75)))), tokenizer, 4, 10, seed=0)
    with pytest.raises(InputError, match=r"got 0 in own \(5 tokens\); use a smaller --seq_len or a longer text"):
        build_calibration(text_of("short"), tokenizer, 1, 10, seed=0)


def test_a_text_longer_than_the_tokenizers_limit_is_no_warning(tokenizer, caplog):
    """Text is split into windows later, so a "sequence longer than maximum" warning would only alarm."""
    limited = copy.deepcopy(tokenizer)
    limited.model_max_length = 16
    ids = tokenize("a text of more than sixteen bytes", limited)
    assert len(ids) == 33
    assert caplog.records == []


def test_description_says_where_the_windows_come_from(tokenizer):
    calibration = build_calibration(ENGLISH, tokenizer, 2, 32, seed=5)
    assert calibration.describe() == {
        "texts": ["builtin"],
        "source": f"builtin, even topics, {ENGLISH.source}",
        "sequences": 2,
        "seq_len": 32,
        "seed": 5,
        "sha256": calibration.sha256,
    }


def test_a_calibration_prints_on_one_line(tokenizer):
    calibration = build_calibration(load_text("builtin", CALIBRATE), tokenizer, 3, 8, seed=1)
    assert repr(calibration) == "Calibration(3 sequences of 8 tokens, builtin, seed 1)"


def test_several_texts_give_the_same_number_each_in_mixed_order(tokenizer):
    digits = text_of("".join(f"{number:08d}" for number in range(40)))
    calibration = build_calibration([digits, ENGLISH], tokenizer, 9, 8, seed=3)
    assert calibration.input_ids.shape == (9, 8)
    digit_ids = tokenize("0123456789", tokenizer)
    of_digits = [bool(torch.isin(row, digit_ids).all()) for row in calibration.input_ids]
    assert sum(of_digits) == 5
    assert of_digits != sorted(of_digits, reverse=True)
    assert calibration.source.count(" + ") == 1
    assert calibration.describe()["texts"] == ["own", "builtin"]
    again = build_calibration([digits, ENGLISH], tokenizer, 9, 8, seed=3)
    assert again.sha256 == calibration.sha256
    with pytest.raises(InputError, match="use --nsamples 80"):
        build_calibration([digits, ENGLISH], tokenizer, 100, 8, seed=3)
    few = build_calibration([digits, ENGLISH], tokenizer, 100, 8, seed=3, at_most=True)
    assert len(few.input_ids) == 40 + 50


def test_texts_that_repeat_each_other_or_get_no_sequence_are_refused(tokenizer):
    digits = text_of("".join(f"{number:08d}" for number in range(40)))
    with pytest.raises(InputError, match="do not repeat one another"):
        build_calibration([digits, digits], tokenizer, 80, 8, seed=3)
    with pytest.raises(InputError, match="at least one sequence from each of 2"):
        build_calibration([digits, ENGLISH], tokenizer, 1, 8, seed=3)
