"""Error of the categorical family's `moments` rule against a million samples a row.

Run ``python -m benchmarks.quality.categorical_rule`` (a few minutes). Rows of 30 binary features,
half of them on, under dropout with retain rate 0.5, and normal weights that give each logit a
noise variance of 0.5, 2 or 8. The reference is the expectation over the gaussian with the moments
of the noisy logits, from 10^6 antithetic samples; the errors are in per cent of its mean over the
rows.
"""

import torch

from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.penalties import moments, quadratic

N_ROWS, N_FEATURES, N_DRAWS = 8, 30, 10


def draw(function, *shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return function(*shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def errors(n_classes, variance):
    network = NoisyNetwork([N_FEATURES, n_classes], noise={0: Dropout(0.5)}, dtype=torch.float64)
    x = (draw(torch.rand, N_ROWS, N_FEATURES, seed=1) < 0.5).double()
    (linear,) = network.linears
    weight = draw(torch.randn, n_classes, N_FEATURES, seed=2)
    linear.weight.copy_(weight * (variance / x.sum(1).mean()).sqrt())
    linear.bias.zero_()
    trace = network.trace(x)
    sampled = torch.zeros(N_ROWS, dtype=torch.float64)
    for seed in range(N_DRAWS):
        noise = draw(torch.randn, 10**6 // (2 * N_DRAWS), N_FEATURES, seed=10 + seed)
        for row, eta in enumerate(trace.eta):
            shift = (noise * x[row]) @ linear.weight.mT
            for signed in (shift, -shift):
                sampled[row] += (eta + signed).logsumexp(-1).mean() / (2 * N_DRAWS)
    sampled -= trace.eta.logsumexp(-1)
    figures = []
    for rule in (moments, quadratic):
        error = rule(trace, Categorical()) - sampled
        figures += [error.square().mean().sqrt(), error.mean()]
    return [100 * float(figure / sampled.mean()) for figure in figures]


def main():
    print(
        "classes  variance  moments: rms   bias   quadratic: rms   bias   (% of the expectation)"
    )
    for n_classes in (3, 5, 10, 20, 50):
        for variance in (0.5, 2.0, 8.0):
            a, b, c, d = errors(n_classes, variance)
            print(f"{n_classes:7d}{variance:10.1f}{a:14.1f}{b:7.1f}{c:17.1f}{d:7.1f}", flush=True)


if __name__ == "__main__":
    main()
