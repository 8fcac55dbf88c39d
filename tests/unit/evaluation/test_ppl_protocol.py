"""The protocol beside every perplexity: texts, joins and window lengths; and the mapping that carries it."""

from collections.abc import Mapping

import pytest

from hgsp.data.texts import EVALUATE, load_text
from hgsp.errors import InputError
from hgsp.evaluation.metrics.ppl import PPLMetric


def test_protocol_tells_window_lengths_apart(make, tokenizer, text_file):
    model = make("llama-8q4kv")
    short, long = (
        PPLMetric(model, tokenizer, [str(text_file)], seq_len=seq_len, max_windows=4).details[str(text_file)]
        for seq_len in (128, 256)
    )
    assert short.ppl != long.ppl
    for found, seq_len in ((short, 128), (long, 256)):
        assert (found.seq_len, found.stride, found.windows, found.tokens) == (seq_len, seq_len, 4, 4 * (seq_len - 1))
        assert (found.split, found.source, found.dtype) == ("whole file", "english.txt", "float32")
        assert found.sha256 == load_text(str(text_file), EVALUATE).sha256
        for part in (f"4 windows of {seq_len} tokens", f"stride {seq_len}", "no BOS", "float32", found.sha256[:12]):
            assert part in found.protocol()


@pytest.mark.parametrize(
    ("name", "file", "content", "text", "split", "join"),
    [
        pytest.param(
            "ptb",
            "ptb/ptb.test.txt",
            " no it was n't black monday \n but while the <unk> N points \n some <unk> \n",
            "no it was n't black monday but while the <unk> N points some <unk>",
            "penn_treebank/test",
            "' '",
            id="ptb",
        ),
        pytest.param(
            "wikitext",
            "wikitext2/wiki.test.raw",
            " \n = Robert = \n \n Robert is . \n",
            "\n\n = Robert = \n\n\n\n\n Robert is . \n",
            "wikitext-2-raw-v1/test",
            "'\\n\\n'",
            id="wikitext2",
        ),
        pytest.param(
            "c4",
            "c4/c4_sample_1000.jsonl",
            '{"text": "One.\\nTwo"}\n{"text": " three "}\n',
            "One.\nTwo  three ",
            "sample, split unknown",
            "' '",
            id="c4",
        ),
    ],
)
def test_texts_are_joined_by_the_documented_rule(make, tokenizer, tmp_path, name, file, content, text, split, join):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(content.encode())
    assert load_text(name, EVALUATE, tmp_path).content == text
    metric = PPLMetric(make("llama-8q4kv"), tokenizer, [name], seq_len=512, data_dir=tmp_path)
    details = metric.details[name]
    assert list(metric) == [name]  # the key is what was asked for, the protocol has the full name
    assert (details.split, details.join, details.tokens) == (split, join, len(text) - 1)


def test_unknown_dataset_lists_the_choices(make, tokenizer):
    with pytest.raises(InputError, match="wikitext2, ptb, c4"):
        PPLMetric(make("llama-8q4kv"), tokenizer, ["wikitext103"])


def test_metric_is_a_read_only_mapping(make, tokenizer, text_file):
    metric = PPLMetric(make("llama-8q4kv"), tokenizer, datasets=[str(text_file)], seq_len=64, max_windows=2)
    assert isinstance(metric, Mapping)
    assert dict(metric) == {str(text_file): metric.details[str(text_file)].ppl}
    assert len(metric) == 1
    assert repr(metric) == repr(dict(metric))
    with pytest.raises(TypeError):
        metric[str(text_file)] = 1.0
    with pytest.raises(KeyError):
        metric["c4"]
