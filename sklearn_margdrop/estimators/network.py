"""The networks: layers, an adaptive or a plain gradient optimiser, epochs."""

from __future__ import annotations

import copy
import math
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sklearn_margdrop.distributed.data_parallel import engine_of, is_main_process
from sklearn_margdrop.estimators.base import BaseMarginalizedEstimator, Call
from sklearn_margdrop.estimators.discounts import SHARE_OF_NETWORKS
from sklearn_margdrop.estimators.html import Outline
from sklearn_margdrop.estimators.nets import TargetNet
from sklearn_margdrop.estimators.pretraining import pretrain
from sklearn_margdrop.estimators.sklearn_private import (
    HasMethods,
    Hidden,
    Interval,
    Options,
    StrOptions,
)
from sklearn_margdrop.estimators.strengths import RETAIN_RATES, TRIAL_RATE, choose, rates_of
from sklearn_margdrop.estimators.validation import (
    check_finite,
    check_hidden_layer_sizes,
    check_noise,
    check_sites,
    draw_seed,
)
from sklearn_margdrop.estimators.weights import WHERE, ReadOnlyList
from sklearn_margdrop.export.graph import Layers
from sklearn_margdrop.layers import ACTIVATIONS
from sklearn_margdrop.methods import NETWORK_METHODS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Noise
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.numerics.devices import to_array
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.training.callbacks import (
    CosineDecay,
    InverseDecay,
    Stopping,
    check_callbacks,
    check_validation,
    freezes,
    schedules_rates,
)
from sklearn_margdrop.training.engine import Engine
from sklearn_margdrop.training.fingerprint import describe
from sklearn_margdrop.training.schedules import auto_epochs
from sklearn_margdrop.training.solvers import GLM_SOLVERS, NETWORK_SOLVERS, one_of

#: What ``max_iter="auto"`` stands for, where `tol` ends a fit.
_AUTO_EPOCHS = 200

#: Solvers that networks do not have, and why is told.
_FULL_BATCH = {name for name, solver in GLM_SOLVERS.items() if solver.full_batch}


class BaseMarginalizedNetwork(BaseMarginalizedEstimator):
    """Base of the network estimators."""

    penalty_curve_: list[float]
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    pretrainers_: list[Any]
    retain_rate_: tuple[float, float] | None

    _unlabeled_share = SHARE_OF_NETWORKS
    _solvers = NETWORK_SOLVERS
    _curves = {**BaseMarginalizedEstimator._curves, "penalty_curve_": "penalty"}

    _parameter_constraints: dict[str, Any] = {
        **BaseMarginalizedEstimator._parameter_constraints,
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(ACTIVATIONS.keys())],
        "noise_placement": "no_validation",
        "retain_rate": [Interval(Real, 0, 1, closed="right"), StrOptions({"auto"}), "array-like"],
        "method": [StrOptions(NETWORK_METHODS.keys())],
        "n_probes": [Interval(Integral, 1, None, closed="left"), None],
        "solver": [StrOptions(NETWORK_SOLVERS.keys()), Hidden(StrOptions(_FULL_BATCH))],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "cosine"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_decay": [Interval(Real, 0, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "max_iter": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "shuffle": ["boolean"],
        "pretrainer": [HasMethods(["fit", "get_params"]), None],
        "callbacks": [list, tuple, None],
        "accelerator": [HasMethods(["reduce", "wait_for_everyone"]), None],
    }

    def _partial_fit(
        self, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any, classes: Any = None
    ) -> Self:
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True: it sees no fixed data to "
                "validate on. Set early_stopping=False or use fit."
            )
        return super()._partial_fit(X, y, sample_weight, X_unlabeled, classes)

    def _check_parameters(self) -> None:
        hidden, _ = self._layers()
        check_callbacks(self.callbacks)
        self._check_schedule()
        if self.solver in _FULL_BATCH:
            raise ValueError(
                f"solver must be {one_of(NETWORK_SOLVERS)}. {self.solver!r} takes all rows at "
                "once, for models without hidden layers: MarginalizedDropoutGLMClassifier and its "
                "regressor."
            )
        if self.checkpoint is not None and getattr(self.accelerator, "num_processes", 1) > 1:
            raise ValueError(
                "checkpoint keeps the state of one process, and the accelerator has several: set "
                "checkpoint=None (callbacks=[skorch.callbacks.Checkpoint(...)] keeps the weights) "
                "or accelerator=None."
            )
        if self.pretrainer is not None and not hidden:
            raise ValueError(
                "pretrainer needs a hidden layer; with hidden_layer_sizes=() set pretrainer=None."
            )

    def _check_schedule(self) -> None:
        other = "learning_rate_decay > 0" if self.learning_rate_decay > 0 else None
        if schedules_rates(self.callbacks or ()):
            other = "an LRScheduler among callbacks"
        if self.learning_rate != "constant" and other is not None:
            raise ValueError(
                f"learning_rate={self.learning_rate!r} is a schedule, and so is {other}: set "
                "learning_rate='constant' to use the latter."
            )

    def _identity(self, call: Call, data: str) -> dict[str, str]:
        identity = super()._identity(call, data)
        if self.learning_rate == "cosine":  # each step depends on the length
            identity["max_iter"] = describe(self.max_iter)
        return identity

    def _most_epochs(self) -> int | None:
        if self.max_iter != "auto":
            return int(self.max_iter)
        return None if self.learning_rate == "cosine" else _AUTO_EPOCHS

    def _train(self, rows: Rows, valid: Rows | None, call: Call) -> TargetNet:
        if call.continuing:
            scale = self.net_.module_.input_scale
        else:
            # Adaptive steps do not depend on the units of the features, so they are scaled here.
            # Plain sgd keeps the learning rates of the textbooks.
            scale = 1.0 if self._solver.plain else rows.feature_scale()
        seed = draw_seed(call.random_state)
        net = self._build_net(rows, call, scale, None, seed)
        if valid is None:
            check_validation(net.callbacks_)
        if call.continuing:
            self._check_layers(net)
        else:
            self._start_output(net, rows, call.incremental)
            self.pretrainers_ = []
            if self.pretrainer is not None:
                self.pretrainers_ = pretrain(self.pretrainer, net.module_, rows, call.random_state)
        if rows.unlabeled_share == 0:
            rows.unlabeled = None  # they were there to pretrain
        # What is wrong with callbacks, layers or the pretrainer has shown by now.
        checkpoint = None if call.checkpoints is None else call.checkpoints.of(0)
        rates = None if checkpoint is None else checkpoint.stored("retain_rate_")
        if rates is None:
            rates = self._choose_rates(rows, valid, call, scale)
        if rates is not None:
            weights = net.copy_weights()
            net = self._build_net(rows, call, scale, rates, seed)
            net.module_.load_state_dict(weights)
        net.retain_rate_ = rates
        if call.continuing:
            net.take_over(self.net_, call.incremental)
        if not call.continuing or net.module__activation != self.net_.module__activation:
            _find_centres(net.module_, rows)
        epochs = 1 if call.incremental else self._most_epochs()
        if epochs is None:
            epochs = auto_epochs(net.count_steps(rows))
        net.train(rows, valid, epochs, call.watcher, checkpoint)
        return net

    def _split(self, index: np.ndarray, y: np.ndarray, call: Call) -> list[np.ndarray]:
        if not self.early_stopping:
            return [index]
        try:
            parts = train_test_split(
                index,
                test_size=self.validation_fraction,
                random_state=call.random_state,
                stratify=y[index] if call.target.stratifies else None,
            )
        except ValueError as error:
            raise ValueError(
                f"early_stopping=True could not set aside a validation set ({error}). Change "
                "validation_fraction, add rows, or set early_stopping=False."
            ) from error
        if len(parts[1]) < 2:
            raise ValueError(
                "early_stopping=True left fewer than 2 rows to validate on; raise "
                "validation_fraction, add rows, or set early_stopping=False."
            )
        return [np.sort(part) for part in parts]

    def _layers(
        self, auto: tuple[float, float] = RETAIN_RATES[0]
    ) -> tuple[tuple[int, ...], dict[int, Noise]]:
        """The widths of the hidden layers, and the noise by site, if "auto" is these rates."""
        sizes = check_hidden_layer_sizes(self.hidden_layer_sizes)
        sites = check_sites(self.noise_placement, len(sizes))
        given = self.retain_rate
        rates = rates_of(auto, sites) if isinstance(given, str) and given == "auto" else given
        strengths = {"retain_rate": rates, "noise_std": self.noise_std}
        return sizes, check_noise(self.noise, sites, strengths)

    def _choose_rates(
        self, rows: Rows, valid: Rows | None, call: Call, input_scale: float
    ) -> tuple[float, float] | None:
        """The retain rates that "auto" stands for; None where they are given."""
        _, noise = self._layers()
        model = next(iter(noise.values()), None)
        if (
            not isinstance(self.retain_rate, str)
            or getattr(model, "parameter", "") != "retain_rate"
        ):
            return None
        if call.continuing or call.incremental:
            known = getattr(self, "retain_rate_", None) if call.continuing else None
            return known or RETAIN_RATES[0]

        def train(rates: tuple[float, float], rows: Rows, epochs: int) -> TargetNet:
            net = self._build_net(rows, call, input_scale, rates, seed=0, is_trial=True)
            self._start_output(net, rows, incremental=False)
            _find_centres(net.module_, rows)
            net.train(rows, None, epochs)
            if net.stop_reason_ == "interrupted":
                raise KeyboardInterrupt
            return net

        # A mean that is exponential in what strong noise moves has no useful expectation.
        candidates = RETAIN_RATES[:-1] if call.target.family.may_overflow else RETAIN_RATES
        rates, losses = choose(candidates, list(noise), train, rows, valid, self._batch_size)
        if self.verbose and is_main_process(self.accelerator):
            tried = ", ".join(f"{each}: {loss:.5g}" for each, loss in losses.items())
            print(f"retain_rate {rates}; held-out losses of short trainings: {tried}")
        return rates

    @property
    def _batch_size(self) -> int:
        return 200 if self.batch_size == "auto" else int(self.batch_size)

    def _build_net(
        self,
        rows: Rows,
        call: Call,
        input_scale: float,
        rates: tuple[float, float] | None,
        seed: int,
        is_trial: bool = False,
    ) -> TargetNet:
        hidden, noise = self._layers() if rates is None else self._layers(rates)
        rate = float(self.learning_rate_init) * (TRIAL_RATE if is_trial else 1)
        unit = None if call.incremental else call.target.loss_unit(rows)
        callbacks: list[Any] = []
        if self.learning_rate_decay > 0 and not is_trial:
            callbacks.append(("learning_rate_decay", InverseDecay(self.learning_rate_decay)))
        if is_trial:
            callbacks.append(("cosine_decay", CosineDecay()))
        elif unit is not None:
            monitor = "valid_score" if self.early_stopping else "train_loss"
            tol = self.tol if self.early_stopping else self.tol * unit
            patience = self.n_iter_no_change
            if self.learning_rate == "cosine":
                patience = math.inf  # a schedule is not cut short
                callbacks.append(("cosine_decay", CosineDecay()))
            callbacks.append(("stopping", Stopping(monitor, tol, patience)))
        # The user's own are not changed by a fit.
        callbacks += [] if is_trial else clone(list(self.callbacks or ()), safe=False)
        # Where weights thaw, momentum comes late to them, which torch's fused sgd does not know.
        late_momentum = "momentum" in self._solver.options and freezes(callbacks)
        options = {}
        if self._solver.fused:
            on_known = rows.features.device.type in ("cpu", "cuda")
            options["optimizer__fused"] = on_known and not late_momentum
        net = self._new_net(
            rows,
            call,
            hidden,
            seed,
            criterion__alpha=float(self.alpha),
            module__activation=self.activation,
            module__noise=noise,
            module__seed=seed,
            module__input_scale=input_scale,
            criterion__n_probes=self.n_probes,
            optimizer__param_groups=[("layers.0.weight", {"lr": rate / input_scale})],
            lr=rate,
            batch_size=self._batch_size,
            shuffle=self.shuffle,
            loss_unit=unit,
            callbacks=callbacks,
            **options | ({"verbose": 0} if is_trial else {}),
        )
        net.engine_ = engine_of(self.accelerator)
        return net

    def _start_output(self, net: TargetNet, rows: Rows, incremental: bool) -> None:
        """Let the predictions vary about the mean of the target."""
        *_, output = net.module_.linears
        with torch.no_grad():
            output.bias.copy_(net.target.family.link(net.target.mean(rows, incremental)))
            # A constant is predicted as it is, and tells the hidden layers nothing.
            output.weight[net.target.is_constant(rows)] = 0

    def _check_layers(self, net: TargetNet) -> None:
        sizes, fitted = net.module__layer_sizes, self.net_.module__layer_sizes
        if sizes != fitted:
            raise ValueError(
                f"The layers of the previous call were {fitted}, but hidden_layer_sizes and the "
                f"data now make them {sizes}. Start anew: call fit with warm_start=False."
            )

    def _diverged(self, net: TargetNet) -> str:
        return (
            f"The objective exploded or became non-finite in epoch {net.n_epochs + 1}. Lower "
            f"learning_rate_init (now {self.learning_rate_init:g}), scale the features "
            "(StandardScaler or MinMaxScaler), or weaken the noise (raise retain_rate, lower "
            "noise_std)."
        )

    def _smaller(self, on_gpu: bool) -> list[str]:
        changes = [f"lower batch_size (now {self.batch_size})"]
        if NETWORK_METHODS[self.method].estimate is not None:
            changes.insert(0, f"set n_probes=1 (now {self.n_probes})")
        return [*changes, f"lower hidden_layer_sizes (now {self.hidden_layer_sizes})"]

    def _not_converged(self) -> str:
        if self.learning_rate == "cosine":
            return ""  # which is where its schedule ends
        return (
            f"Training stopped at max_iter={self._most_epochs()} epochs before it converged; "
            "increase max_iter, learning_rate_init or tol."
        )

    def _fitted_layers(self) -> Layers:
        linears = self.net_.module_.linears
        activations = [site.layers[-1] for site in self.net_.module_.sites[1:]]
        weights = [to_array(linear.weight.T) for linear in linears]
        intercepts = [to_array(linear.bias) for linear in linears]
        if (units := self._target.units) is not None:
            weights[-1] = (weights[-1] * units.spread).astype(self._dtype())
            intercepts[-1] = units.decode(intercepts[-1]).astype(self._dtype())
        return weights, intercepts, activations

    def _fitted_network(self) -> NoisyNetwork:
        return self.net_.module_

    def _outline(self) -> Outline:
        if not self.__sklearn_is_fitted__():
            hidden, noise = self._layers()
            return ["", *hidden, ""], self.activation, noise
        sites = self.net_.module_.sites
        noise = {site.number: site.noise for site in sites if site.noise is not None}
        return self.net_.module__layer_sizes, self.net_.module__activation, noise

    def _attributes(self, net: TargetNet) -> dict[str, Any]:
        # What is made of it is not to follow the training.
        still = type(net).__new__(type(net))
        own = {"module_": copy.deepcopy(net.module_), "engine_": Engine()}
        still.__dict__.update(vars(net) | own)
        return {"net_": still, "_target": net.target, "retain_rate_": net.retain_rate_}

    def _store(self, net: TargetNet, rows: Rows, incremental: bool) -> None:
        scores = [epoch["valid_score"] for epoch in net.history if "valid_score" in epoch]
        self.n_iter_, self.retain_rate_ = net.n_epochs, net.retain_rate_
        self.validation_scores_ = scores if self.early_stopping else None
        self.best_validation_score_ = net.best_score_

    def _dtype(self) -> type[np.floating]:
        weight = self.net_.module_.linears[0].weight
        return np.float32 if weight.dtype == torch.float32 else np.float64

    def _linear_predictor(self, X: MatrixLike) -> Tensor:
        X = self._check_rows(X)
        features = Features(X, self.net_.device, resident=False, dtype=self._dtype())
        eta, units = self.net_.linear_predictor(features), self._target.units
        if units is None:
            return eta
        return torch.from_numpy(units.decode(check_finite(eta).cpu().numpy()))

    def __getstate__(self) -> dict[str, Any]:
        # The processes of this run are nothing that a saved model can count on.
        state: dict[str, Any] = super().__getstate__()
        return state | {"accelerator": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin.accelerator = self.accelerator
        return twin

    @property
    def coefs_(self) -> list[NDArray[Any]]:
        """Weights of each layer, a list of arrays of shape (fan_in, fan_out) to read."""
        weights, _, _ = self._fitted_layers()
        return ReadOnlyList(map(torch.from_numpy, weights))

    @coefs_.setter
    def coefs_(self, value: object) -> None:
        raise AttributeError(WHERE)

    @property
    def intercepts_(self) -> list[NDArray[Any]]:
        """Intercepts of each layer, a list of arrays of shape (fan_out,) to read."""
        _, intercepts, _ = self._fitted_layers()
        return ReadOnlyList(map(torch.from_numpy, intercepts))

    @intercepts_.setter
    def intercepts_(self, value: object) -> None:
        raise AttributeError(WHERE)


@torch.no_grad()
def _find_centres(network: NoisyNetwork, rows: Rows) -> None:
    """Let the layers' centres, where there are any, be the mean activations on `rows`."""
    sums: dict[nn.Module, Any] = {x: 0.0 for x in network.linears if x.centre is not None}
    for position in blocks(len(rows), network.widest) if sums else ():
        x: Any = rows.take(position)
        for layer in network.layers:
            if layer in sums:
                sums[layer] += x.sum(0) if rows.weight is None else rows.weight[position] @ x
            x = layer(x)
    total = len(rows) if rows.weight is None else rows.weight.sum()
    for layer, value in sums.items():
        layer.get_buffer("centre").copy_(value / total)
