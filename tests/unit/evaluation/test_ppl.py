"""Token perplexity: known answers, an independent computation, windows and BOS, and the protocol beside the number."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import hgsp.evaluation.metrics.ppl as ppl_module
from conftest import make_tiny
from hgsp.data.calibration import tokenize
from hgsp.data.texts import EVALUATE, Text, load_text
from hgsp.errors import InputError, NumericalError
from hgsp.evaluation.metrics.ppl import perplexity, split_windows

VOCAB = 50


class Scripted(nn.Module):
    """A causal LM whose logits are what ``logits(input_ids)`` says; remembers the ids it was shown."""

    def __init__(self, logits, vocab=VOCAB):
        super().__init__()
        self.embedding = nn.Embedding(vocab, 4)
        self.logits, self.seen = logits, []
        self.config = SimpleNamespace(max_position_embeddings=64)
        self.dtype = torch.float32

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask, use_cache):
        assert attention_mask.bool().all()
        assert use_cache is False
        self.seen += input_ids.tolist()
        return SimpleNamespace(logits=self.logits(input_ids))


def uniform(input_ids):
    return torch.zeros(*input_ids.shape, VOCAB)


class Words:
    """Whitespace words are token ids; ``adds_bos`` puts a BOS in front when special tokens are asked for."""

    def __init__(self, bos_token_id=None, adds_bos=False, size=VOCAB):
        self.bos_token_id, self.adds_bos, self.vocab_size = bos_token_id, adds_bos, size

    def get_vocab(self):
        return {str(number): number for number in range(self.vocab_size)}

    def __call__(self, text, add_special_tokens=True, **kwargs):
        ids = [int(word) for word in text.split()]
        return {"input_ids": [self.bos_token_id, *ids] if add_special_tokens and self.adds_bos else ids}


def text_of(content):
    return Text("words", "test", "words.txt", "''", content)


NUMBERS = text_of(" ".join(str(2 + number % 40) for number in range(100)))


@pytest.fixture
def english(text_file):
    return load_text(str(text_file), EVALUATE)


def by_hand(model, ids, seq_len):
    """The definition in ten lines: one window at a time, float64, no batches and no pieces."""
    nll = tokens = 0
    for start in range(0, len(ids), seq_len):
        window = ids[start : start + seq_len]
        if len(window) < 2:
            continue
        with torch.no_grad():
            log_probs = model(window[None]).logits[0].double().log_softmax(-1)
        nll -= sum(log_probs[position, window[position + 1]].item() for position in range(len(window) - 1))
        tokens += len(window) - 1
    return math.exp(nll / tokens)


def test_uniform_predictions_have_the_vocabulary_size_as_perplexity():
    found = perplexity(Scripted(uniform), Words(), NUMBERS, seq_len=16)
    assert found.ppl == pytest.approx(VOCAB, rel=1e-6)  # log(50) in float32
    assert found.stderr == pytest.approx(0, abs=1e-5)  # every window is equally hard


@pytest.mark.parametrize("seq_len", [64, 100, 333])
def test_equals_an_independent_computation(tiny, tokenizer, english, seq_len):
    english = replace(english, content=english.content[:1500])
    expected = by_hand(tiny, tokenize(english.content, tokenizer), seq_len)
    found = perplexity(tiny, tokenizer, english, seq_len=seq_len, batch_size=4)
    assert found.ppl == pytest.approx(expected, rel=1e-5)  # float32 logits either way, summed in another order


def test_does_not_depend_on_batch_size_or_padding_side(make, tokenizer, english):
    model = make("llama-8q4kv")
    left, right = tokenizer_padding(tokenizer, "left"), tokenizer_padding(tokenizer, "right")
    found = [
        perplexity(model, side, english, seq_len=128, max_windows=13, batch_size=size).ppl
        for side in (left, right)
        for size in (1, 3, 12)
    ]
    assert found == pytest.approx([found[0]] * 6, rel=1e-6)  # float32 kernels round differently per batch size


def tokenizer_padding(tokenizer, side):
    import copy

    padded = copy.deepcopy(tokenizer)
    padded.pad_token, padded.padding_side = padded.eos_token, side
    return padded


def test_a_short_last_window_counts_by_its_tokens():
    def harder_when_short(input_ids):
        logits = uniform(input_ids)
        if input_ids.shape[1] < 16:
            logits[..., 0] = 30.0  # token 0 never comes: about 30 nats each
        return logits

    found = perplexity(Scripted(harder_when_short), Words(), NUMBERS, seq_len=16)
    assert (found.windows, found.tokens) == (7, 6 * 15 + 3)
    short = math.log(49 + math.exp(30.0))
    assert found.nll == pytest.approx(90 * math.log(VOCAB) + 3 * short, rel=1e-6)
    assert found.ppl == pytest.approx(math.exp(found.nll / found.tokens))
    dropped = perplexity(Scripted(harder_when_short), Words(), NUMBERS, seq_len=16, drop_last=True)
    assert (dropped.windows, dropped.tokens) == (6, 90)
    assert dropped.ppl == pytest.approx(VOCAB, rel=1e-6)
    assert (found.last_window, dropped.last_window) == ("scored", "dropped")


def test_standard_error_is_that_of_the_windows_means(make, tokenizer, english):
    model = make("llama-8q4kv")
    ids = tokenize(english.content, tokenizer)[: 5 * 64]
    means = torch.tensor([math.log(by_hand(model, window, 64)) for window in ids.split(64)], dtype=torch.float64)
    found = perplexity(model, tokenizer, english, seq_len=64, max_windows=5)
    assert found.stderr == pytest.approx(found.ppl * float(means.std()) / math.sqrt(5), rel=1e-4)
    assert perplexity(model, tokenizer, english, seq_len=64, max_windows=1).stderr is None


@pytest.mark.parametrize(
    ("tokenizer", "content"),
    [
        pytest.param(Words(bos_token_id=1, adds_bos=True), NUMBERS.content, id="adds BOS"),
        pytest.param(Words(bos_token_id=None), NUMBERS.content, id="has no BOS"),
        pytest.param(Words(bos_token_id=1), "1 " + NUMBERS.content, id="BOS already in the text"),
        pytest.param(Words(bos_token_id=1, adds_bos=True), "1 1 " + NUMBERS.content, id="BOS twice in the text"),
    ],
)
@pytest.mark.parametrize("add_bos", [False, True])
def test_no_window_has_more_than_one_bos(tokenizer, content, add_bos):
    if add_bos and tokenizer.bos_token_id is None:
        with pytest.raises(InputError, match="BOS"):
            perplexity(Scripted(uniform), tokenizer, text_of(content), seq_len=16, add_bos=True)
        return
    model = Scripted(uniform)
    found = perplexity(model, tokenizer, text_of(content), seq_len=16, add_bos=add_bos)
    assert found.bos is add_bos
    assert found.stride == (15 if add_bos else 16)
    if add_bos:
        assert all(window[0] == 1 and window.count(1) == 1 for window in model.seen)
        assert sum(len(window) - 1 for window in model.seen) == len(NUMBERS.content.split())
    else:
        assert [token for window in model.seen for token in window] == [int(word) for word in content.split()]


def test_bos_is_never_a_target():
    found = perplexity(Scripted(uniform), Words(bos_token_id=1), NUMBERS, seq_len=11, add_bos=True)
    assert (found.windows, found.tokens) == (10, 100)


@pytest.mark.parametrize("num_tokens", [128, 130, 255])
def test_number_of_windows_is_the_number_of_times_a_window_fits(num_tokens):
    windows = split_windows(torch.arange(num_tokens), 64, None, None, drop_last=True)
    assert len(windows) == num_tokens // 64
    assert torch.equal(torch.cat(windows), torch.arange(num_tokens // 64 * 64))


def test_a_window_of_one_token_predicts_nothing_and_is_left_out():
    assert [len(window) for window in split_windows(torch.arange(65), 32, None, None)] == [32, 32]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error_and_never_a_number(bad):
    def broken(input_ids):
        logits = uniform(input_ids)
        logits[:, 3, :] = bad if bad != math.inf else -math.inf
        return logits

    model = Scripted(broken).train()
    with pytest.raises(NumericalError, match=r"window 0 of words is (nan|inf)"):
        perplexity(model, Words(), NUMBERS, seq_len=16)
    assert model.training  # a failure leaves the model as it was


def test_a_perplexity_too_large_for_a_float_is_an_error():
    def hopeless(input_ids):
        logits = uniform(input_ids)
        logits[..., 0] = 1000.0
        return logits

    with pytest.raises(NumericalError, match="1000 nats"):
        perplexity(Scripted(hopeless), Words(), NUMBERS, seq_len=16)


class NoFloat64(TorchFunctionMode):
    """A device without float64, such as mps: only tensors that were moved to the CPU become double."""

    def __init__(self):
        super().__init__()
        self.moved = []  # kept alive, so that no other tensor gets the id of one of them

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.Tensor.cpu:
            self.moved.append(result)
        elif isinstance(result, torch.Tensor) and result.dtype == torch.float64 != args[0].dtype:
            assert any(args[0] is tensor for tensor in self.moved), function
        return result


def test_needs_no_float64_on_the_device():
    expected = perplexity(Scripted(uniform), Words(), NUMBERS, seq_len=50, max_windows=1).ppl
    with NoFloat64():
        found = perplexity(Scripted(uniform), Words(), NUMBERS, seq_len=50, max_windows=1)
    assert found.ppl == expected == pytest.approx(VOCAB)


@pytest.mark.parametrize("at_once", [1, 3 * VOCAB, 10**9])
def test_pieces_of_logits_do_not_change_the_number(monkeypatch, at_once):
    torch.manual_seed(0)
    table = torch.randn(VOCAB, VOCAB)
    whole = perplexity(Scripted(table.__getitem__), Words(), NUMBERS, seq_len=16).nll
    monkeypatch.setattr(ppl_module, "FLOAT_LOGITS_ON_CPU", at_once)
    assert perplexity(Scripted(table.__getitem__), Words(), NUMBERS, seq_len=16).nll == whole


def test_a_tokenizer_larger_than_the_embedding_is_refused():
    with pytest.raises(InputError, match=rf"at most {VOCAB} tokens.*got {VOCAB + 1}"):
        perplexity(Scripted(uniform), Words(size=VOCAB + 1), NUMBERS, seq_len=16)


@pytest.mark.parametrize("seq_len", [1, 65])
def test_a_window_the_model_cannot_take_is_refused(seq_len):
    with pytest.raises(InputError, match="2 to 64 tokens"):
        perplexity(Scripted(uniform), Words(), NUMBERS, seq_len=seq_len)


def test_window_length_defaults_to_the_models_limit():
    assert perplexity(Scripted(uniform), Words(), NUMBERS).seq_len == 64


@pytest.mark.parametrize(("content", "drop_last"), [("7", False), ("1 2 3", True)])
def test_text_without_a_window_is_refused(content, drop_last):
    with pytest.raises(InputError, match="longer text"):
        perplexity(Scripted(uniform), Words(), text_of(content), seq_len=16, drop_last=drop_last)


def test_models_give_the_same_perplexity_in_training_mode(english, tokenizer):
    model = make_tiny("llama-8q4kv", attention_dropout=0.5)
    expected = perplexity(model, tokenizer, english, seq_len=64, max_windows=2).ppl
    assert perplexity(model.train(), tokenizer, english, seq_len=64, max_windows=2).ppl == expected
    assert model.training
