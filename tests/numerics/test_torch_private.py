"""What torch keeps private does what is expected; without it, the results are the same."""

import pytest
import torch
from oracles import randn
from torch.autograd.graph import saved_tensors_hooks

from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.numerics import products, torch_private
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.penalties import quadratic

CHECKS = {
    "_linear_pointwise": torch_private.has_onednn_linear,
    "_embedding_bag_per_sample_weights_backward": torch_private.has_dots_of_rows,
    "_are_functorch_transforms_active": torch_private._tells_transforms,
    "_len_torch_function_stack": torch_private._tells_function_modes,
    "_top_saved_tensors_default_hooks": torch_private._tells_saving_hooks,
}
HOMES = {
    "_linear_pointwise": torch.ops.mkldnn,
    "_embedding_bag_per_sample_weights_backward": torch.ops.aten,
    "_top_saved_tensors_default_hooks": torch._C._autograd,
}


@pytest.fixture(params=["gone", "changed"])
def without(request, monkeypatch):
    """Take private names away, or let them do something else."""

    def take(*names):
        for name in names:
            # What is None cannot be called; an operator that is deleted would be looked up again.
            other = None if request.param == "gone" else lambda *_: None
            monkeypatch.setattr(HOMES.get(name, torch._C), name, other)
        for check in CHECKS.values():
            check.cache_clear()

    yield take
    for check in CHECKS.values():
        check.cache_clear()


def test_this_torch_has_them():
    assert {name for name, check in CHECKS.items() if not check()} <= (
        set() if torch.backends.mkldnn.is_available() else {"_linear_pointwise"}
    )
    assert not torch_private.is_transformed()
    assert not torch_private.has_function_modes()
    assert not torch_private.has_saving_hooks()


@pytest.mark.parametrize("name", CHECKS)
def test_the_checks_find_what_is_gone_or_changed(name, without):
    without(name)
    assert [each for each, check in CHECKS.items() if not check()] == [name]


def test_products_and_penalties_without_them(without, monkeypatch):
    """Products go to torch, and nothing is cut."""
    monkeypatch.setattr(products, "_MIN_MULTIPLICATIONS", 0)
    network = NoisyNetwork([30, 20, 3], noise={0: Dropout(0.5)})
    x = randn(50, 30).float()

    def gradient():
        network.zero_grad()
        quadratic(network.trace(x), Categorical()).sum().backward()
        return network.linears[0].weight.grad.clone()

    expected = gradient()
    without("_linear_pointwise")
    torch.testing.assert_close(gradient(), expected)
    monkeypatch.setattr(torch_private, "_tells_transforms", lambda: False)
    torch.testing.assert_close(gradient(), expected)


def test_neutral_without_them(without):
    without("_len_torch_function_stack", "_top_saved_tensors_default_hooks")
    saved = []
    with saved_tensors_hooks(saved.append, lambda kept: kept), torch.device("meta"), neutral():
        x = torch.ones(2, requires_grad=True)
        x.exp().sum().backward()
    assert (x.device.type, saved) == ("cpu", [])
    torch.testing.assert_close(x.grad, x.detach().exp())


def test_last_rates_of_a_schedule_are_set():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    torch_private.set_last_rates(scheduler, [0.25])
    assert scheduler.get_last_lr() == [0.25]
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.5]
