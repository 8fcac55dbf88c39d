"""The ridge regression alone: moments are sums over batches, and the solution is the textbook one."""

import pytest
import torch
from torch import nn

from hgsp.reconstruction.least_squares import RIDGES, Moments, solve


def moments_of(linear, inputs, errors, dtype=torch.float64, batches=1):
    moments = Moments(linear, dtype)
    for part, error in zip(inputs.chunk(batches), errors.chunk(batches), strict=True):
        moments.add(part, error, error)
    return moments


@pytest.fixture
def problem():
    """A Linear [5, 3], inputs [8, 10, 5], and an error that a known change of its weights removes."""
    torch.manual_seed(0)
    linear = nn.Linear(5, 3, bias=False).requires_grad_(False)
    inputs, change = torch.randn(8, 10, 5), torch.randn(3, 5)
    return linear, inputs, change, inputs @ change.T


def test_moments_do_not_depend_on_the_batches(problem):
    linear, inputs, _, errors = problem
    whole, parts = (moments_of(linear, inputs, errors, batches=batches) for batches in (1, 4))
    # float32 products of other batches
    torch.testing.assert_close(parts.A_SS, whole.A_SS, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.G_SH, whole.G_SH, rtol=1e-5, atol=1e-5)
    assert parts.error == pytest.approx(whole.error)


def test_a_change_of_weights_that_explains_the_error_is_found(problem):
    linear, inputs, change, errors = problem
    fit = moments_of(linear, inputs, errors)
    new, ridge, error = solve(linear.weight, fit, moments_of(linear, inputs, errors, torch.float32))
    assert ridge == min(RIDGES)
    torch.testing.assert_close(new, linear.weight + change, atol=1e-3, rtol=1e-3)  # the smallest ridge shrinks by 1e-4
    assert abs(error) < 1e-5 * fit.error  # a difference of float32 sums


def test_the_old_weights_stay_if_every_change_increases_the_held_out_error(problem):
    linear, inputs, _, errors = problem
    held = moments_of(linear, inputs, -errors)
    new, ridge, error = solve(linear.weight, moments_of(linear, inputs, errors), held)
    assert ridge is None
    assert torch.equal(new, linear.weight)
    assert error == held.error


def test_noise_gets_a_stronger_ridge_than_a_signal(problem):
    """Ten tokens and eighty columns of noise, which weak ridges overfit."""
    torch.manual_seed(1)
    linear = nn.Linear(80, 3, bias=False).requires_grad_(False)
    change = torch.randn(3, 80)

    def sample(tokens):
        inputs = torch.randn(1, tokens, 80)
        return inputs, inputs @ change.T + 30 * torch.randn(1, tokens, 3)

    fit, held = moments_of(linear, *sample(100)), moments_of(linear, *sample(1000))
    _, ridge, error = solve(linear.weight, fit, held)
    assert ridge is None or ridge >= 1
    assert error <= held.error


def test_the_returned_error_is_that_of_the_rounded_weights(problem):
    _, inputs, _, errors = problem
    errors = errors + 0.01 * torch.randn(errors.shape)
    linear = nn.Linear(5, 3, bias=False).requires_grad_(False).bfloat16()
    held = moments_of(linear, inputs, errors)
    new, _, error = solve(linear.weight, moments_of(linear, inputs, errors), held)
    assert new.dtype == torch.bfloat16
    left = errors - inputs @ (new.float() - linear.weight.float()).T
    assert error == pytest.approx(
        float(left.square().sum()), rel=0.02
    )  # a difference of float32 sums, 1e5 times larger
    best = torch.linalg.lstsq(inputs.flatten(0, 1), errors.flatten(0, 1)).solution
    assert error > 1.05 * float((errors - inputs @ best).square().sum())  # rounding costs more than that tolerance


def test_the_solution_needs_float64():
    """Two almost equal inputs, which float32 normal equations cannot tell apart."""
    torch.manual_seed(2)
    linear = nn.Linear(2, 1, bias=False).requires_grad_(False).double()
    moments = Moments(linear, torch.float64)
    moments.A_SS += torch.tensor([[1.0, 1 - 2e-9], [1 - 2e-9, 1.0]], dtype=torch.float64)
    moments.G_SH += moments.A_SS @ torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    moments.error = moments.output = 1.0
    new, ridge, _ = solve(linear.weight, moments, moments)
    expected = torch.linalg.solve(moments.A_SS + ridge * torch.eye(2), moments.G_SH)
    torch.testing.assert_close(new, linear.weight + expected.T, rtol=1e-9, atol=1e-12)


def test_a_bias_is_one_more_column():
    torch.manual_seed(3)
    linear = nn.Linear(4, 3).requires_grad_(False)
    inputs, change = torch.randn(4, 20, 4), torch.randn(3)
    errors = change.expand(4, 20, 3)
    moments = moments_of(linear, inputs, errors)
    assert moments.A_SS.shape == (5, 5)
    old = torch.cat([linear.weight, linear.bias[:, None]], dim=1)
    new, _, _ = solve(old, moments, moments)
    torch.testing.assert_close(new[:, -1], linear.bias + change, atol=1e-3, rtol=1e-3)


def test_inputs_that_are_always_zero_leave_the_weights_alone():
    linear = nn.Linear(4, 3, bias=False).requires_grad_(False)
    moments = moments_of(linear, torch.zeros(1, 5, 4), torch.ones(1, 5, 3))
    new, ridge, error = solve(linear.weight, moments, moments)
    assert ridge is None
    assert torch.equal(new, linear.weight)
    assert error == moments.error


@pytest.mark.parametrize(("judged", "at_a_time"), [(2, 512), (3, 1), (2, 2)])
def test_outputs_that_choose_the_ridge_choose_it_for_all(monkeypatch, judged, at_a_time):
    """Seven outputs of one signal: any of them selects the same ridge, with which all are solved."""
    torch.manual_seed(2)
    linear, change = nn.Linear(20, 7, bias=False).requires_grad_(False), torch.randn(1, 20).expand(7, 20)

    def sample(tokens):
        inputs = torch.randn(1, tokens, 20)
        return inputs, inputs @ change.T + 2 * torch.randn(1, tokens, 1).expand(1, tokens, 7)

    fit, held = moments_of(linear, *sample(60)), moments_of(linear, *sample(500))
    expected, ridge, error = solve(linear.weight, fit, held)
    assert min(RIDGES) < ridge < max(RIDGES)
    monkeypatch.setattr("hgsp.reconstruction.least_squares.JUDGED_OUTPUTS", judged)
    monkeypatch.setattr("hgsp.reconstruction.least_squares.OUTPUTS_AT_A_TIME", at_a_time)
    got, got_ridge, got_error = solve(linear.weight, fit, held)
    assert got_ridge == ridge
    assert got_error == pytest.approx(error)
    torch.testing.assert_close(got, expected)


def test_a_ridge_selected_by_some_outputs_is_rejected_if_the_sum_gets_worse(monkeypatch):
    torch.manual_seed(3)
    linear, inputs = nn.Linear(5, 4, bias=False).requires_grad_(False), torch.randn(1, 40, 5)
    errors = inputs @ torch.randn(4, 5).T
    misled = errors * torch.tensor([1.0, -1.0, -1.0, -1.0])  # only the first output has the same error in both halves
    fit, held = moments_of(linear, inputs, errors), moments_of(linear, inputs, misled)
    monkeypatch.setattr("hgsp.reconstruction.least_squares.JUDGED_OUTPUTS", 1)
    new, ridge, error = solve(linear.weight, fit, held)
    assert ridge is None
    assert new is linear.weight
    assert error == held.error


def test_a_ridge_that_rounding_leaves_indefinite_is_passed_over(problem):
    """Few tokens for many columns: float32 products leave small negative eigenvalues."""
    linear, inputs, change, _ = problem
    inputs[..., 4] = 0
    errors = inputs @ change.T
    fit = moments_of(linear, inputs, errors)
    fit.A_SS[4, 4] = -2 * RIDGES[0] * fit.A_SS.diagonal().mean()
    _, ridge, error = solve(linear.weight, fit, moments_of(linear, inputs, errors))
    assert ridge == RIDGES[1]
    assert error < 1e-4 * fit.error
    fit.A_SS[4, 4] = -2 * RIDGES[-1] * fit.A_SS.diagonal().mean()
    new, ridge, _ = solve(linear.weight, fit, moments_of(linear, inputs, errors))
    assert ridge is None
    assert torch.equal(new, linear.weight)
