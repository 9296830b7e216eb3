"""The noisy network: fully connected layers with sites where noise enters.

Site 0 is the input, site l the output of hidden layer l.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sklearn_margdrop.layers import ACTIVATIONS, Affine, Jacobian, glorot_uniform_, linearize
from sklearn_margdrop.noise import Noise, random_signs
from sklearn_margdrop.numerics.products import linear
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix


class Trace(NamedTuple):
    """One clean forward pass, with what a penalty needs from it.

    Parameters
    ----------
    eta : Tensor of shape (n_samples, K)
        The linear predictor.
    jacobians : tuple
        The local Jacobian of each layer, from the input to the output.
    variances : tuple of (Tensor of shape (n_samples, width) or None)
        The variance of the noise that enters before each layer, None where none does. A single
        row stands for all samples.
    sources : tuple of (tuple or None)
        The noise model before each layer and the clean activation that it noises, or None.

    See Also
    --------
    trace : Make one.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> network = NoisyNetwork([4, 8, 3], noise={1: Dropout(0.5)})
    >>> trace = network.trace(torch.ones(5, 4))
    >>> [None if s is None else tuple(s.shape) for s in trace.variances]
    [None, None, (5, 8)]
    """

    eta: Tensor
    jacobians: tuple[Jacobian, ...]
    variances: tuple[Matrix | None, ...]
    sources: tuple[tuple[Noise, Matrix] | None, ...]

    @property
    def output(self) -> Affine:
        """The Jacobian of the last layer."""
        last = self.jacobians[-1]
        if not isinstance(last, Affine):
            raise TypeError("The last layer must be affine.")
        return last


def trace(layers: Iterable[nn.Module], x: Matrix, noise: Mapping[int, Noise]) -> Trace:
    """Run `layers` on `x` without noise and keep what the penalties need.

    Parameters
    ----------
    layers : iterable of torch.nn.Module
        An ``nn.Sequential``, say. Every layer has a registered
        :func:`~sklearn_margdrop.layers.linearize`; the last one is affine.
    x : Tensor of shape (n_samples, n_features)
        The rows.
    noise : mapping of int to Noise
        The noise model at the input of the layer with that position.

    Returns
    -------
    Trace
        What :mod:`~sklearn_margdrop.penalties` are functions of.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Categorical
    >>> from sklearn_margdrop.networks import trace
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.penalties import quadratic
    >>> layers = torch.nn.Sequential(
    ...     torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    ... )
    >>> at = trace(layers, torch.ones(5, 4), {0: Dropout(0.8), 2: Dropout(0.5)})
    >>> quadratic(at, Categorical()).shape
    torch.Size([5])
    """
    jacobians: list[Jacobian] = []
    variances: list[Matrix | None] = []
    sources: list[tuple[Noise, Matrix] | None] = []
    for position, layer in enumerate(layers):
        model = noise.get(position)
        if model is None or model.is_null:
            variances.append(None)
            sources.append(None)
        else:
            variances.append(apply_elementwise(x, model.variance))
            sources.append((model, x))
        x, jacobian = linearize(layer, cast("Tensor", x))  # or sparse, into an affine layer
        jacobians.append(jacobian)
    return Trace(cast("Tensor", x), tuple(jacobians), tuple(variances), tuple(sources))


def apply_elementwise(x: Matrix, function: Callable[[Tensor], Tensor]) -> Matrix:
    """Elementwise `function` of a tensor or of a sparse matrix."""
    return x.map(function) if isinstance(x, SparseMatrix) else function(x)


class Site(NamedTuple):
    """A place where noise may enter a network.

    Parameters
    ----------
    number : int
        0 is the input, l the output of hidden layer l.
    width : int
        The number of its features or units.
    noise : Noise or None
        The noise model, if the site is noisy.
    position : int
        That of the layer that it enters, among all the layers of the network.
    layers : tuple of torch.nn.Module
        The linear layer and the activation function whose output it is; none at the input.
    """

    number: int
    width: int
    noise: Noise | None
    position: int
    layers: tuple[nn.Module, ...]


class _Linear(nn.Linear):
    centre: Tensor | None

    def __init__(self, fan_in: int, fan_out: int, centred: bool, **options: Any) -> None:
        super().__init__(fan_in, fan_out, **options)
        self.register_buffer("centre", self.weight.new_zeros(fan_in) if centred else None)

    def forward(self, x: Matrix) -> Tensor:
        return linear(x, self.weight, self.bias)

    def reset_parameters(self) -> None:
        """Leave the parameters to the network: torch would use the global generator."""


class NoisyNetwork(nn.Module):
    """A multilayer perceptron whose sites may be noisy.

    Parameters
    ----------
    layer_sizes : sequence of int
        Widths of the input, of each hidden layer and of the output.
    activation : {"relu", "logistic", "tanh", "identity"}, default="relu"
        Of the hidden layers.
    noise : mapping of int to Noise, default={}
        The noise model at each noisy site. Models that leave their site as it is are dropped.
    seed : int or None, default=0
        Seed of the initial weights, which are the same on every device; None starts at zero.
    dtype : torch.dtype, default=torch.float32
        Of the parameters.
    input_scale : float, default=1.0
        Typical size of the features. The first layer's initial weights are divided by it.
    fit_intercept : bool, default=True
        Whether the layers have intercepts.
    centre_input : bool, default=False
        Whether the first layer has a centre, see :meth:`centred`.

    Raises
    ------
    ValueError
        If `noise` names a site that the layers do not have.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> network = NoisyNetwork([4, 8, 3], noise={0: Dropout(0.8), 1: Dropout(0.5)})
    >>> x = torch.ones(5, 4)
    >>> network(x).shape, torch.equal(network(x), network.sample(x))
    (torch.Size([5, 3]), False)
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        activation: str = "relu",
        noise: Mapping[int, Noise] | None = None,
        seed: int | None = 0,
        dtype: torch.dtype = torch.float32,
        input_scale: float = 1.0,
        fit_intercept: bool = True,
        centre_input: bool = False,
    ):
        super().__init__()
        noise = dict(noise or {})
        if not noise.keys() <= set(range(len(layer_sizes) - 1)):
            raise ValueError(
                f"noise names the sites {sorted(noise)}, but {len(layer_sizes) - 2} hidden layers "
                f"have the sites {list(range(len(layer_sizes) - 1))}."
            )
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(layer_sizes):
            # Logistic units are never zero on average, see `centred`.
            centred = activation == "logistic" if layers else centre_input
            centred = centred and fit_intercept
            options = {"bias": fit_intercept, "dtype": dtype, "device": "cpu"}
            affine = _Linear(fan_in, fan_out, centred, **options)
            layers += [affine, ACTIVATIONS[activation]()]
        self.layers = nn.ModuleList(layers[:-1])
        # By the position of the layer that it enters, as `trace` takes it.
        self.noise = {2 * s: model for s, model in noise.items() if not model.is_null}
        self.input_scale = input_scale
        with torch.no_grad():
            if seed is None:
                for parameter in self.parameters():
                    parameter.zero_()
                return
            generator = torch.Generator().manual_seed(seed)
            for linear in self.linears:
                glorot_uniform_(linear, activation, generator)
            self.linears[0].weight.div_(input_scale)

    @property
    def linears(self) -> list[_Linear]:
        """The layers with parameters."""
        return [layer for layer in self.layers if isinstance(layer, _Linear)]

    @property
    def sites(self) -> list[Site]:
        """The places where noise may enter, from the input on."""
        # Linear layers and activation functions alternate, so that site l enters layer 2l.
        layers = tuple(self.layers)
        return [
            Site(p // 2, linear.in_features, self.noise.get(p), p, layers[max(0, p - 2) : p])
            for p, linear in enumerate(layers)
            if isinstance(linear, nn.Linear)
        ]

    @property
    def noisy_linears(self) -> list[nn.Linear]:
        """The layers with parameters from the first noisy site on."""
        first = min([*self.noise, len(self.layers)])  # which torch.compile can follow
        layers = list(self.layers)[first:]
        return [layer for layer in layers if isinstance(layer, nn.Linear)]

    @property
    def centre(self) -> Tensor | None:
        """The centre of the features, if there is one."""
        return self.linears[0].centre

    @property
    def widest(self) -> int:
        """The largest number of features or units of a layer."""
        return max(max(layer.in_features, layer.out_features) for layer in self.linears)

    def forward(self, x: Matrix) -> Tensor:
        """The linear predictor of `x` of shape (n_samples, n_features), without noise."""
        for layer in self.layers:
            x = layer(x)
        return cast("Tensor", x)

    def sample(self, x: Matrix, generator: torch.Generator | None = None) -> Tensor:
        """The linear predictor with one draw of the noise at every noisy site."""
        for index, layer in enumerate(self.layers):
            if index in self.noise:
                draw = partial(self.noise[index].sample, generator=generator)
                x = x.resample(draw) if isinstance(x, SparseMatrix) else draw(x)
            x = layer(x)
        return cast("Tensor", x)

    def mirrored(
        self, x: Tensor, n_pairs: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        """The linear predictor under pairs of opposite noise, (2, n_pairs, n_samples, K).

        At each noisy site the activations of the one are displaced by the noise's standard
        deviation, with a random sign for each unit, and those of the other by its opposite.
        """
        z = x.expand(2, n_pairs, *x.shape)
        for index, layer in enumerate(self.layers):
            if index in self.noise:
                signs = random_signs(z.shape[1:], z, generator)
                z = z + self.noise[index].deviation(z) * torch.stack([signs, -signs])
            z = layer(z)
        return z

    @contextmanager
    def centred(self) -> Iterator[None]:
        """Use coordinates in which layers see their input centred, for a step of an optimiser.

        All the weights after units, or features, that are far from zero act together as the
        intercept does, and many times as strongly: a hundred logistic units, or the year in
        which something happened. The gradient is then dominated by their mean. Plain gradient
        descent is unstable at rates that suit everything else, and drives logistic units into
        saturation. In W and b' = b + W c, with c the mean input when training began, the layer
        computes W (z - c) + b'. (The centring of Schraudolph, 1998.)

        See Also
        --------
        centre_gradients : The gradients in these coordinates.
        uncentred : The way back, for an evaluation within the step.
        """
        layers = self._centred_layers()
        with torch.no_grad():
            for layer, centre in layers:
                layer.bias.addmv_(layer.weight, centre)
            try:
                yield
            finally:
                for layer, centre in layers:
                    layer.bias.addmv_(layer.weight, centre, alpha=-1)

    @contextmanager
    def uncentred(self) -> Iterator[None]:
        """Return to the network's own coordinates within :meth:`centred`, to evaluate it."""
        layers = self._centred_layers()
        kept = [layer.bias.detach().clone() for layer, _ in layers]
        with torch.no_grad():
            for layer, centre in layers:
                layer.bias.addmv_(layer.weight, centre, alpha=-1)
        try:
            yield
        finally:
            with torch.no_grad():
                for (layer, _), bias in zip(layers, kept, strict=True):
                    layer.bias.copy_(bias)

    @torch.no_grad()
    def centre_gradients(self) -> None:
        """Turn gradients in the network's own coordinates into those of :meth:`centred`."""
        for layer, centre in self._centred_layers():
            assert layer.weight.grad is not None
            assert layer.bias.grad is not None
            layer.weight.grad.addr_(layer.bias.grad, centre, alpha=-1)

    def _centred_layers(self) -> list[tuple[_Linear, Tensor]]:
        """The layers whose input has a centre, except frozen ones, which have no gradients."""
        return [
            (layer, layer.centre)
            for layer in self.linears
            if layer.centre is not None
            and layer.weight.grad is not None
            and layer.bias.grad is not None
        ]

    def trace(self, x: Matrix) -> Trace:
        """A clean forward pass that keeps the local Jacobians and the noise variances."""
        return trace(self.layers, x, self.noise)
