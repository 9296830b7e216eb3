"""Training stays finite and useful: centred steps, and the way back from an explosion."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import BernoulliRBM
from skorch.callbacks import Callback

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.training.stability import drop_next_to_nothing

ignore_max_iter = pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
RBM = BernoulliRBM(n_iter=3, learning_rate=0.05)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:400] / 16, y[:400]


def quiet(model, *data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(*data, **options)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_centred_steps_are_those_of_a_network_with_centred_inputs(momentum):
    """Against autograd through W (z - c) + b', written out."""
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(20, 5, generator=rng, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=rng)
    network = NoisyNetwork((5, 4, 6, 3), "logistic", seed=1, dtype=torch.float64)
    layers = network.linears
    c = [torch.rand(width, generator=rng, dtype=torch.float64) for width in (4, 6)]
    for layer, centre in zip(layers[1:], c, strict=True):
        layer.centre.copy_(centre)
    weights = [layer.weight.detach().clone().requires_grad_() for layer in layers]
    shifts = [layer.bias.detach().clone() for layer in layers]
    shifts[1:] = [(b + w @ m).detach() for w, b, m in zip(weights[1:], shifts[1:], c, strict=True)]
    shifts = [b.requires_grad_() for b in shifts]

    def written_out():
        z = (x @ weights[0].T + shifts[0]).sigmoid()
        z = ((z - c[0]) @ weights[1].T + shifts[1]).sigmoid()
        return torch.nn.functional.cross_entropy((z - c[1]) @ weights[2].T + shifts[2], y)

    ours = torch.optim.SGD(network.parameters(), lr=0.7, momentum=momentum)
    other = torch.optim.SGD([*weights, *shifts], lr=0.7, momentum=momentum)
    for _ in range(5):
        ours.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), y)
        loss.backward()
        network.centre_gradients()
        with network.centred():
            ours.step()
        other.zero_grad()
        expected = written_out()
        expected.backward()
        other.step()
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@ignore_max_iter
def test_centres_are_the_mean_activations_at_the_start(digits):
    X, y = digits
    weight = np.arange(len(y)) % 3
    still = {"solver": "sgd", "learning_rate_init": 1e-12, "max_iter": 1, "random_state": 0}
    still |= {"retain_rate": 0.5, "learning_rate": "constant"}
    model = MarginalizedDropoutClassifier((7, 5), activation="logistic", **still)
    model.fit(X, y, sample_weight=weight)
    z = X
    for layer, W, b in zip(
        model.net_.module_.linears, model.coefs_, model.intercepts_, strict=True
    ):
        if z is not X:
            mean = np.average(z, axis=0, weights=weight)
            np.testing.assert_allclose(layer.centre.numpy(), mean, atol=1e-8)
        z = expit(z @ W + b)
    assert model.net_.module_.linears[0].centre is None
    relu = MarginalizedDropoutClassifier((7, 5), **still).fit(X, y)
    assert [layer.centre for layer in relu.net_.module_.linears] == [None] * 3


@ignore_max_iter
@pytest.mark.parametrize("method", ["moments", "diagonal", "sampling"])
def test_logistic_units_learn_at_high_rates(digits, method):
    """Without centred steps they saturate, and predict next to nothing."""
    X, y = digits
    model = MarginalizedDropoutClassifier(
        256,
        activation="logistic",
        method=method,
        noise_placement="input",
        retain_rate=0.9,
        solver="sgd",
        learning_rate_init=1.0,
        momentum=0.9,
        batch_size=20,
        max_iter=10,
        random_state=0,
    )
    assert quiet(model, X, y).score(X, y) > 0.8


EXPLODING = {
    "hidden_layer_sizes": 64,
    "activation": "logistic",
    "solver": "sgd",
    "learning_rate_init": 3.0,
    "momentum": 0.9,
    "batch_size": 20,
    "method": "diagonal",  # whose objective is that of the weights, not of a draw
    "retain_rate": 0.3,
    "learning_rate": "constant",
    "max_iter": 15,
    "random_state": 0,
}


@ignore_max_iter
@pytest.mark.parametrize(
    "options", [{}, {"early_stopping": True}, {"n_iter_no_change": 1, "random_state": 1}]
)
def test_a_fit_comes_back_from_an_explosion(digits, options):
    X, y = digits
    model = MarginalizedDropoutClassifier(**EXPLODING | options)
    with pytest.warns(ConvergenceWarning, match=r"exploded .* learning_rate_init to at most 0\."):
        model.fit(X, y)
    assert model.net_.rate_factor_ == 0.5**model.net_.n_explosions_ < 1
    assert np.isfinite(model.loss_curve_).all()
    assert len(model.loss_curve_) == model.n_iter_ <= 15
    assert model.score(X, y) > 0.6
    again = quiet(MarginalizedDropoutClassifier(**EXPLODING | options), X, y)
    assert all(np.array_equal(a, b) for a, b in zip(model.coefs_, again.coefs_, strict=True))


def test_warm_start_goes_on_at_the_lower_rate_until_it_is_set(digits):
    X, y = digits
    model = MarginalizedDropoutClassifier(**EXPLODING, warm_start=True, learning_rate_decay=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, y)
        factor = model.net_.rate_factor_
        assert factor < 1
        model.fit(X, y)
        assert model.net_.rate_factor_ <= factor
        rate = model.net_.optimizer_.param_groups[0]["lr"]
        assert rate == pytest.approx(3 * model.net_.rate_factor_ / (1 + 0.1 * (model.n_iter_ - 1)))
        model.set_params(learning_rate_init=0.01).fit(X, y)
    assert model.net_.rate_factor_ == 1


class BlowUp(Callback):
    """Multiplies the weights in the last batch of one epoch, which its objective does not see."""

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 3 and not net.n_explosions_:
            with torch.no_grad():
                for parameter in net.module_.parameters():
                    parameter *= 30


@ignore_max_iter
def test_weights_of_the_last_step_are_not_what_it_goes_back_to(digits):
    class Blown(MarginalizedDropoutRegressor):
        def _build_net(self, *args, **kwargs):
            net = super()._build_net(*args, **kwargs)
            net.callbacks_.append(("blow up", BlowUp()))
            return net

    X, y = digits
    options = {"retain_rate": 0.5, "learning_rate": "constant", "learning_rate_init": 0.02}
    model = Blown(16, batch_size=len(y), max_iter=60, random_state=0, **options)
    with pytest.warns(ConvergenceWarning, match=r"exploded 1 time"):
        model.fit(X, y / 10)
    assert model.score(X, y / 10) > 0.3


def test_a_first_batch_that_is_not_typical_is_no_explosion():
    rng = np.random.RandomState(0)
    X = rng.standard_normal((2000, 5))
    y = X @ np.arange(5.0)
    X[:10] *= 30
    y[:10] *= 30
    options = {"solver": "sgd", "learning_rate_init": 1e-4, "max_iter": 5, "random_state": 0}
    model = quiet(MarginalizedDropoutRegressor(**options), X, y)
    assert model.net_.n_explosions_ == 0
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    weight = np.where(np.arange(2000) % 100, 0.0001, 100)
    model = quiet(MarginalizedDropoutRegressor(**options), X[10:], y[10:], weight[10:])
    assert model.net_.n_explosions_ == 0


def test_an_objective_that_begins_infinite_is_an_error():
    X = np.random.RandomState(0).uniform(size=(50, 3)).astype(np.float32)
    model = MarginalizedDropoutRegressor(8, family="poisson", solver="sgd", random_state=0)
    with pytest.raises(ValueError, match="non-finite"):
        model.fit(1e5 * X, np.ones(50))


@pytest.mark.parametrize("scale", [1e6, 1e9])
def test_targets_in_large_units_are_no_explosion(scale):
    rng = np.random.RandomState(0)
    X = rng.standard_normal((200, 3))
    options = {"solver": "sgd", "learning_rate_init": 0.1, "noise_placement": "none"}
    model = MarginalizedDropoutRegressor((), **options, random_state=0, max_iter=50)
    y = scale * (1 + 0.1 * X[:, 0])
    assert quiet(model, X, y).score(X, y) > 0.99
    assert model.net_.n_explosions_ == 0


def test_an_interrupted_step_leaves_the_coordinates():
    network = NoisyNetwork((3, 4, 2), "logistic", dtype=torch.float64)
    network.layers[2].centre.fill_(0.5)
    x = torch.rand(5, 3, dtype=torch.float64)
    before = network(x)
    before.sum().backward()
    with pytest.raises(KeyboardInterrupt), network.centred():
        raise KeyboardInterrupt
    torch.testing.assert_close(network(x), before)


@pytest.mark.parametrize(("first", "second"), [("relu", "logistic"), ("logistic", "tanh")])
def test_the_activation_may_change_between_calls(digits, first, second):
    X, y = digits
    model = quiet(MarginalizedDropoutClassifier(9, activation=first, warm_start=True), X, y)
    model = quiet(model.set_params(activation=second, max_iter=1), X, y)
    has_centre = model.net_.module_.linears[1].centre is not None
    assert has_centre == (second == "logistic")
    assert not has_centre or model.net_.module_.linears[1].centre.abs().sum() > 0


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("method", ["diagonal", "quadratic", "sampling"])
def test_every_setting_of_the_papers_grid_ends_useful(digits, method, pretrained):
    """The grid of P's Table 3 at its corners, on a smaller network and fewer rows."""
    X, y = digits
    X = X.astype(np.float32)
    for rate, momentum, q in product([0.25, 1.0], [0.0, 0.9], [0.1, 0.9]):
        model = MarginalizedDropoutClassifier(
            64,
            activation="logistic",
            method=method,
            noise_placement="input",
            retain_rate=q,
            solver="sgd",
            learning_rate_init=rate,
            momentum=momentum,
            batch_size=20,
            max_iter=15,
            pretrainer=RBM if pretrained else None,
            random_state=0,
        )
        quiet(model, X, y)
        assert np.isfinite(model.predict_proba(X)).all()
        # Masks that keep a tenth of the pixels teach little in so few epochs.
        least = 0.15 if method == "sampling" and q == 0.1 else 0.4
        assert model.score(X, y) > least, (rate, momentum, q)


def test_weights_that_only_decay_do_not_become_subnormal():
    """Those of a feature that is always zero; products with subnormal numbers are slow."""
    X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    X[:, 1] = 0
    options = {"alpha": 0.3, "solver": "sgd", "learning_rate_init": 0.5, "retain_rate": 0.8}
    model = MarginalizedDropoutClassifier(
        4, momentum=0, batch_size=10, max_iter=150, random_state=0, **options
    ).fit(X, X[:, 0] > 0)
    weight = model.net_.module_.linears[0].weight
    assert not weight[:, 1].any()
    assert weight[:, [0, 2]].any()


def test_what_is_next_to_nothing_is_dropped():
    frozen = torch.nn.Parameter(torch.full((2,), 1e-40), requires_grad=False)
    weight = torch.nn.Parameter(torch.tensor([1e-40, -1e-33, 1e-25, 1.0]))
    optimizer = torch.optim.SGD([weight, frozen], lr=1.0, momentum=0.5)
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([1e-39, 0.0, 1e-20, -2.0])
    drop_next_to_nothing(optimizer)
    assert weight.tolist() == pytest.approx([0, 0, 1e-25, 1], rel=1e-6, abs=0)
    assert optimizer.state[weight]["momentum_buffer"].tolist() == pytest.approx(
        [0, 0, 1e-20, -2], rel=1e-6, abs=0
    )
    assert frozen.all()
