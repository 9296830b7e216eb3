"""L-BFGS, on functions whose minimum is known."""

import math

import numpy as np
import pytest
import torch
from oracles import randn
from scipy.optimize import minimize

from sklearn_margdrop.training.lbfgs import FisherLBFGS, line_search


def optimizer_of(params, diagonal=None, **options):
    optimizer = FisherLBFGS([{"params": params}], **options)
    optimizer.precondition(diagonal or [torch.ones_like(p) for p in params])
    return optimizer


def run(optimizer, function, n_steps=200, tol=1e-9):
    calls = []

    def closure():
        value = function()
        value.backward()
        calls.append(value.item())
        return value

    values = []
    for _ in range(n_steps):
        values.append(optimizer.step(closure))
        assert values[-1] == calls[-1], "the last call is at the parameters"
        if optimizer.decrement <= tol or optimizer.stalled:
            break
    return values, calls


def quadratic_problem(n=30, condition=1e4):
    q, _ = torch.linalg.qr(randn(n, n))
    hessian = (q * torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ q.mT
    minimum = randn(n, seed=1)
    x = torch.nn.Parameter(torch.zeros(n, dtype=torch.float64))
    return x, minimum, hessian, lambda: 0.5 * (x - minimum) @ hessian @ (x - minimum)


@pytest.mark.parametrize("history_size", [3, 40])
def test_a_quadratic(history_size):
    x, minimum, hessian, function = quadratic_problem()
    values, calls = run(optimizer_of([x], history_size=history_size), function, 2000)
    torch.testing.assert_close(x.detach(), minimum, rtol=0, atol=1e-9)
    assert values == sorted(values, reverse=True)

    def numpy_function(z):
        gradient = hessian @ (torch.tensor(z) - minimum)
        return 0.5 * float(gradient @ (torch.tensor(z) - minimum)), gradient.numpy()

    assert len(calls) < 1.3 * evaluations_of_scipy(numpy_function, len(x), history_size, 1e-9)


def evaluations_of_scipy(function, n, history_size, tol):
    options = {"gtol": tol, "ftol": 0, "maxcor": history_size, "maxiter": 5000}
    return minimize(function, np.zeros(n), jac=True, method="L-BFGS-B", options=options).nfev


def test_scaling_makes_the_units_of_the_parameters_indifferent():
    x, minimum, hessian, function = quadratic_problem(condition=10)
    plain, _ = run(optimizer_of([x], [hessian.diagonal()]), function)
    units = torch.logspace(-6, 6, len(x), dtype=torch.float64)
    z = torch.nn.Parameter(torch.zeros_like(x))

    def rescaled():
        return 0.5 * (units * z - minimum) @ hessian @ (units * z - minimum)

    scaled, _ = run(optimizer_of([z], [hessian.diagonal() * units**2]), rescaled)
    np.testing.assert_allclose(scaled[:20], plain[:20], rtol=1e-3, atol=1e-12)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_rosenbrock_takes_about_as_many_evaluations_as_scipy():
    x = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    _, calls = run(optimizer_of([x]), lambda: rosenbrock(x), 500, tol=1e-8)
    torch.testing.assert_close(x.detach(), torch.ones_like(x), rtol=0, atol=1e-6)

    def numpy_rosenbrock(z):
        z = torch.tensor(z, requires_grad=True)
        value = rosenbrock(z)
        value.backward()
        return value.item(), z.grad.numpy()

    assert len(calls) < 1.5 * evaluations_of_scipy(numpy_rosenbrock, 10, 10, 1e-8)


def test_parameters_of_several_shapes_and_without_information():
    w = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    b = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    diagonal = [torch.tensor([[4.0, 0.0, 1.0]] * 2).double(), torch.ones(2).double()]
    optimizer = optimizer_of([w, b], diagonal)
    target = randn(2, 3)

    def function():
        return (torch.tensor([2.0, 0, 0.5]) * (w - target) ** 2).sum() + (b**2).sum() / 2

    run(optimizer, function)
    expected = target.clone()
    expected[:, 1] = 1  # it stays where it was
    torch.testing.assert_close(w.detach(), expected)
    torch.testing.assert_close(b.detach(), torch.zeros_like(b))
    optimizer.forget()
    assert w.grad is None
    torch.testing.assert_close(w.detach(), expected)


def test_values_that_are_not_finite_are_walls():
    x = torch.nn.Parameter(torch.tensor([1e-3], dtype=torch.float64))

    def function():
        return (x - 0.5 * x.log()).sum()  # infinite or nan to the left of zero

    run(optimizer_of([x]), function)
    assert x.item() == pytest.approx(0.5, abs=1e-8)


def test_a_minimum_is_left_alone():
    x = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = optimizer_of([x])
    run(optimizer, lambda: (x**2).sum())
    assert optimizer.stalled
    assert (x == 0).all()


def test_interrupted_steps_leave_the_last_accepted_parameters():
    x, _, _, function = quadratic_problem()
    optimizer = optimizer_of([x])
    run(optimizer, function, 5)
    before = x.detach().clone()
    calls = iter([None])

    def closure():
        next(calls)
        value = 1e6 * function()  # a step that has to be tried again
        value.backward()
        return value

    with pytest.raises(StopIteration):
        optimizer.step(closure)
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("first", [1e-6, 1e-2, 1.0, 1e2, 1e5])
@pytest.mark.parametrize(
    "function",
    [
        lambda t: ((t - 2) ** 2, 2 * (t - 2)),
        lambda t: (-math.log(t + 1e-2) + t, 1 - 1 / (t + 1e-2)),
        lambda t: (math.sqrt(1 + (t - 30) ** 2), (t - 30) / math.sqrt(1 + (t - 30) ** 2)),
        lambda t: (t**4 - 3 * t**2 - t, 4 * t**3 - 6 * t - 1),
    ],
)
def test_line_search_meets_the_wolfe_conditions(first, function):
    value, slope = function(0.0)
    t, found = line_search(function, value, slope, first)
    assert found == function(t)[0] <= value + 1e-4 * t * slope
    assert abs(function(t)[1]) <= 0.9 * abs(slope)


def test_line_search_without_a_descent_stays():
    assert line_search(lambda t: (t, 1.0), 0.0, 1.0, 1.0) == (0.0, 0.0)
    assert line_search(lambda t: (math.inf, math.nan), 0.0, -1.0, 1.0)[0] == 0.0


def test_a_step_that_finds_no_direction_calls_the_closure_and_stays():
    x, calls = torch.nn.Parameter(torch.ones(2)), []
    optimizer = FisherLBFGS([{"params": [x]}])
    optimizer.precondition([torch.ones(2)])

    def objective():
        """Half the square of the first; the slope of the second is lost after the start."""
        calls.append(x.detach().clone())
        lost = 0.0 if len(calls) == 1 else torch.nan
        x.grad += torch.stack([x[0], torch.tensor(lost)]).detach()
        return 0.5 * x[0] ** 2

    optimizer.step(objective)
    reached, n_calls = x.detach().clone(), len(calls)
    assert reached.isfinite().all()
    value = optimizer.step(objective)
    assert len(calls) == n_calls + 1
    assert torch.equal(x, reached)
    assert torch.equal(calls[-1], reached)
    assert value == pytest.approx(0.5 * float(reached[0]) ** 2)
    assert optimizer.stalled
