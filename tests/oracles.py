"""Slow, obvious references for the tests; they share no mathematics with the package.

A network is a list of (weight, bias) and a function, noise a mapping of sites to models.
Expectations are sums over every dropout mask, derivatives come from autograd.
"""

from functools import partial
from itertools import product

import torch
from torch.autograd.functional import hessian, jacobian

from sklearn_margdrop.layers import ACTIVATIONS
from sklearn_margdrop.noise import NOISE_MODELS

STRENGTHS = {"retain_rate": 0.6, "noise_std": 0.4}
NULL_STRENGTHS = {"retain_rate": 1.0, "noise_std": 0.0}


def make_noise(name, strengths=STRENGTHS):
    """The noise model of that name at the strength of its parameter."""
    model = NOISE_MODELS[name]
    return model(strengths[model.parameter])


def randn(*shape, seed=0, dtype=torch.float64):
    """Standard normal numbers that leave the global generator alone."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_targets(family, eta, seed=0):
    """Labels that `eta` could have produced: class indices, or means of perturbed `eta`."""
    mean = family.mean(eta + 0.5 * randn(*eta.shape, seed=seed, dtype=eta.dtype))
    return mean.argmax(-1) if family.name == "categorical" else mean


def z_score(draws, expected):
    """Largest distance of the mean of `draws` (n, ...) from `expected`, in standard errors."""
    error = draws.std(0) / len(draws) ** 0.5
    return ((draws.mean(0) - expected).abs() / error).max().item()


def weights_of(network):
    """The (weight, bias) of each layer."""
    return [(linear.weight.detach(), linear.bias.detach()) for linear in network.linears]


def tail(weights, activation, site, z):
    """The linear predictor of the activation `z` of `site`."""
    for index in range(site, len(weights)):
        weight, bias = weights[index]
        z = z @ weight.T + bias
        if index < len(weights) - 1:
            z = ACTIVATIONS[activation]()(z)
    return z


def sites_of(weights, activation, x):
    """The activation of every site: the input and the output of each hidden layer."""
    zs = [x]
    for weight, bias in weights[:-1]:
        zs.append(ACTIVATIONS[activation]()(zs[-1] @ weight.T + bias))
    return zs


def quadratic(weights, activation, family, noise, x):
    """1/2 sum_l sum_i s_li [J_l' H J_l]_ii row by row, from autograd's J and H."""
    rows = []
    for row in x:
        curvature = hessian(family.log_partition, tail(weights, activation, 0, row))
        zs = sites_of(weights, activation, row)
        total = torch.zeros((), dtype=x.dtype)
        for site, model in noise.items():
            j = jacobian(partial(tail, weights, activation, site), zs[site])
            total += 0.5 * (model.variance(zs[site]) * (j.T @ curvature @ j).diagonal()).sum()
        rows.append(total)
    return torch.stack(rows)


def diagonal(weights, activation, family, noise, x):
    """Variances pushed forward unit by unit in plain loops; slopes and H from autograd."""
    rows = []
    for row in x:
        zs = sites_of(weights, activation, row)
        curvature = hessian(family.log_partition, tail(weights, activation, 0, row)).numpy()
        carried = [0.0] * len(row)
        for site, (weight, bias) in enumerate(weights):
            if site in noise:
                carried = [
                    v + s for v, s in zip(carried, noise[site].variance(zs[site]), strict=True)
                ]
            w = weight.numpy()
            if site == len(weights) - 1:
                break
            slope = jacobian(ACTIVATIONS[activation](), zs[site] @ weight.T + bias).diagonal()
            carried = [
                float(slope[i]) ** 2 * sum(w[i, j] ** 2 * carried[j] for j in range(len(carried)))
                for i in range(len(w))
            ]
        columns = w.T
        total = sum(0.5 * v * (c @ curvature @ c) for v, c in zip(carried, columns, strict=True))
        rows.append(torch.as_tensor(total, dtype=x.dtype))
    return torch.stack(rows)


def dropout_outcomes(weights, activation, retain, row):
    """Probability and linear predictor of every mask; `retain` maps sites to retain rates."""
    probability, z = torch.ones(1, dtype=row.dtype), row[None]
    for site in range(len(weights)):
        if site in retain:
            q = retain[site]
            masks = torch.tensor(list(product([0.0, 1.0], repeat=z.shape[-1])), dtype=z.dtype)
            chance = (q * masks + (1 - q) * (1 - masks)).prod(-1)
            probability = (probability[:, None] * chance).flatten()
            z = (z[:, None] * masks / q).flatten(0, 1)
        z = tail([weights[site]], activation, 0, z)
        if site < len(weights) - 1:
            z = ACTIVATIONS[activation]()(z)
    return probability, z


def expected(weights, activation, retain, x, function):
    """Exact expectation over the masks of ``function(eta~, i)`` for each row i of `x`."""
    rows = []
    for i, row in enumerate(x):
        probability, eta = dropout_outcomes(weights, activation, retain, row)
        rows.append((probability * function(eta, i)).sum())
    return torch.stack(rows)
