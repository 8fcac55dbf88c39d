"""Training losses against plain loops, and the teacher's logits, cached or not."""

import math

import pytest
import torch

from hgsp.errors import InputError
from hgsp.recovery import losses
from hgsp.recovery.collator import Collator
from hgsp.recovery.config import TrainingConfig
from hgsp.recovery.losses import Objective, TeacherTopK, top_of
from hgsp.recovery.samples import IGNORED
from hgsp.recovery.teacher import Teacher, inspect_teacher, teacher_outputs
from recovering import sample

B, T, V = 2, 7, 11


@pytest.fixture
def batch():
    """Logits of student and teacher, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(3)
    logits, teacher = (torch.randn(B, T, V, generator=generator) * 2 for _ in range(2))
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[:, :3] = IGNORED
    labels[1, -2:] = IGNORED
    return logits.requires_grad_(), teacher, labels


def by_hand(logits, labels, teacher, weight, temperature):
    total = 0.0
    for row in range(B):
        for position in range(T - 1):
            if labels[row, position + 1] == IGNORED:
                continue
            nll = -torch.log_softmax(logits[row, position], 0)[labels[row, position + 1]]
            p, q = (torch.softmax(x[row, position] / temperature, 0) for x in (teacher, logits))
            kl = sum(p[v] * math.log(p[v] / q[v]) for v in range(V))
            total += (1 - weight) * float(nll) + weight * temperature**2 * float(kl)
    return total


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_the_sum_of_both_parts_over_learned_tokens(batch, weight, temperature):
    logits, teacher, labels = batch
    found = Objective(weight, temperature).summed(logits, labels, teacher)
    assert found.item() == pytest.approx(by_hand(logits.detach(), labels, teacher, weight, temperature), rel=1e-5)


def test_chunks_change_neither_loss_nor_gradient(batch, monkeypatch):
    logits, teacher, labels = batch
    whole = Objective(0.5).summed(logits, labels, teacher)
    (expected,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr(losses, "FLOAT_LOGITS_ON_CPU", 3 * V)
    pieces = Objective(0.5).summed(logits, labels, teacher)
    (found,) = torch.autograd.grad(pieces, logits)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(found, expected)


def test_a_student_that_is_its_teacher_has_no_distance(batch):
    logits, _, labels = batch
    assert Objective(1.0).summed(logits, labels, logits.detach()).item() == pytest.approx(0, abs=1e-5)


def test_the_top_with_the_rest_as_one_is_never_more_than_all_and_nearly_all_for_a_large_k(batch):
    """Merging outcomes cannot raise a KL divergence."""
    logits, teacher, labels = batch
    whole = Objective(1.0).summed(logits, labels, teacher).item()
    found = [Objective(1.0).summed(logits, labels, TeacherTopK(*top_of(teacher, k, 1.0))).item() for k in (1, 4, V - 1)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(whole, rel=1e-4)
    assert 0 < found[0] < whole


@pytest.fixture
def ask(make, saved):
    """``ask(**flags)`` is the configuration of a run distilled from a saved tiny model, and the model's source."""
    teacher = saved(make("llama-8q4kv"), "teacher")

    def configuration(**flags):
        config = TrainingConfig(
            distill_from=str(teacher), micro_batch_size=2, dtype="float32", **flags
        )  # fmt: skip
        return config, inspect_teacher(config, 258)

    return configuration


SAMPLES = (sample(1, 2, 3, 4, 5), sample(6, 7, 8), sample(9, 10, 11, 12))


@pytest.mark.parametrize("offload", [False, True])
def test_cached_logits_are_those_of_the_teacher(ask, make, offload, tmp_path):
    config, source = ask(distill_cache=True, distill_top_k=5, distill_offload=offload)
    collator = Collator(0, packed=False)
    teacher, (cache, empty) = teacher_outputs(config, source, (SAMPLES, ()), collator, "cpu", tmp_path / "cache")
    assert teacher is None
    assert empty is not None
    model = make("llama-8q4kv")
    for index, one in enumerate(SAMPLES):
        with torch.no_grad():
            values, tokens = top_of(model(torch.from_numpy(one.input_ids).long()[None]).logits[0], 5, 1.0)
        torch.testing.assert_close(cache.of(index)[0], values, rtol=2e-3, atol=2e-3)  # float16 on disk
        assert (cache.of(index)[1] == tokens).all()


def test_the_cache_is_used_again_and_only_for_the_same_sequences(ask, monkeypatch, tmp_path):
    config, source = ask(distill_cache=True, distill_top_k=2)
    collator = Collator(0, packed=False)
    teacher_outputs(config, source, (SAMPLES,), collator, "cpu", tmp_path / "cache")
    asked = []
    monkeypatch.setattr(Teacher, "__call__", lambda self, inputs: asked.append(inputs))
    teacher_outputs(config, source, (SAMPLES,), collator, "cpu", tmp_path / "cache")
    assert not asked
    with pytest.raises(AssertionError):
        teacher_outputs(config, source, (SAMPLES[:2],), collator, "cpu", tmp_path / "cache")
    assert asked


def test_a_full_disk_is_refused_before_the_teacher_runs(ask, monkeypatch, tmp_path):
    config, source = ask(distill_cache=True, distill_top_k=2)
    monkeypatch.setattr("hgsp.console.disk.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"free disk for --distill_cache; got 10 B.*--distill_top_k"):
        teacher_outputs(config, source, (SAMPLES,), Collator(0, packed=False), "cpu", tmp_path / "cache")


def test_a_teacher_with_another_vocabulary_is_refused(ask):
    config, _ = ask()
    with pytest.raises(InputError, match="vocabulary of 300 tokens; got 258"):
        inspect_teacher(config, 300)


def test_a_top_k_beyond_the_vocabulary_is_refused(ask):
    with pytest.raises(InputError, match="--distill_top_k below 258"):
        ask(distill_top_k=258)
