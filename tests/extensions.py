"""Extensions of one's own, as docs/extending.rst shows: from a noise model to a solver.

Importing this registers them; `test_extending.py` does so, and takes them back.
"""

# ruff: noqa: E402

# [noise]
import torch

from sklearn_margdrop.noise import Noise


class GaussianDropout(Noise):
    """z~ = z * Normal(1, std^2): variance (std z)^2."""

    name = "gaussian-dropout"
    parameter = "noise_std"

    @property
    def is_null(self):
        return self.strength == 0

    def variance(self, z):
        return (self.strength * z).square()

    def sample(self, z, generator=None):
        factor = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return z * (1 + self.strength * factor)


# [family]
from torch.nn.functional import logsigmoid

from sklearn_margdrop.families import Family
from sklearn_margdrop.numerics.quadrature import softplus


class Proportion(Family):
    """Shares `y` in [0, 1], with log-odds eta: half the binomial deviance of one trial."""

    name = "proportion"
    lowest, highest = 0.0, 1.0

    def log_partition(self, eta):
        return softplus(eta).sum(-1)

    def mean(self, eta):
        return eta.sigmoid()

    def link(self, mean):
        return mean.logit()

    def curvature(self, eta):
        return eta.sigmoid() * (-eta).sigmoid()

    def loss(self, eta, y):
        entropy = torch.special.entr(y) + torch.special.entr(1 - y)
        return (softplus(eta) - y * eta - entropy).sum(-1)

    # Optional: the root of a product that underflows has no gradient, these factors have.
    def curvature_root(self, eta):
        return (0.5 * (logsigmoid(eta) + logsigmoid(-eta))).exp()


# [activation]
from torch import nn

from sklearn_margdrop.layers import ACTIVATIONS, Elementwise, linearize

ACTIVATIONS["softplus"] = nn.Softplus


@linearize.register
def _(layer: nn.Softplus, z):
    slope = z.sigmoid()
    return layer(z), Elementwise(slope, lambda: 1 - slope)


# [layer]
from typing import NamedTuple


class Averages(NamedTuple):
    """Jacobian of the means of neighbours, `size` at a time."""

    size: int

    def push_forward(self, tangent):
        return tangent.unflatten(-1, (-1, self.size)).mean(-1)

    def pull_back(self, cotangent):
        return cotangent.repeat_interleave(self.size, -1) / self.size

    def push_variance(self, variance):
        return variance.unflatten(-1, (-1, self.size)).sum(-1) / self.size**2


@linearize.register
def _(layer: nn.AvgPool1d, z):
    (size,) = layer.kernel_size
    return layer(z), Averages(size)


# [method]
from sklearn_margdrop.families import Normal
from sklearn_margdrop.methods import GLM_METHODS, NETWORK_METHODS, Method
from sklearn_margdrop.penalties import quadratic


def tikhonov(trace, family):
    """What noise adds to a squared error of eta, whatever the family (Bishop, 1995)."""
    return quadratic(trace, Normal())


NETWORK_METHODS["tikhonov"] = GLM_METHODS["tikhonov"] = Method(
    "second order, with the identity in the place of the curvature",
    tikhonov,
    second_order=tikhonov,
)


# [solver]
from sklearn_margdrop.training.solvers import GLM_SOLVERS, NETWORK_SOLVERS, Solver


class SignDescent(torch.optim.Optimizer):
    """Steps of the learning rate along the signs of the gradient."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:  # a frozen one has none
                    p.sub_(p.grad.sign(), alpha=group["lr"])


NETWORK_SOLVERS["signs"] = Solver(SignDescent)
GLM_SOLVERS["signs"] = Solver(SignDescent, learning_rate=0.01)


# [parallel]
from sklearn_margdrop import MarginalizedDropoutClassifier


class Classifier(MarginalizedDropoutClassifier):
    """To unpickle it, a worker process imports this module, and knows what it registers."""
