"""What the network estimators share: validate, build, fit, store."""

from __future__ import annotations

import warnings
from abc import ABCMeta, abstractmethod
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from sklearn_margdrop.batches import Features, Rows
from sklearn_margdrop.layers import ACTIVATIONS
from sklearn_margdrop.objective import METHODS
from sklearn_margdrop.training import InverseDecay, MarginalizedNet, Stopping
from sklearn_margdrop.validation import (
    check_device,
    check_hidden_layer_sizes,
    check_noise,
    check_sites,
    check_weights,
    draw_seed,
    fresh_random_state,
    to_tensor,
)

_DIVERGED = (
    "The objective or the weights became non-finite in epoch {epoch}. Lower learning_rate_init "
    "(now {rate:g}), scale the features (StandardScaler or MinMaxScaler), or weaken the noise."
)


class BaseMarginalizedNetwork(BaseEstimator, metaclass=ABCMeta):
    """Base of the network estimators; subclasses say what the target is.

    A subclass encodes ``y``, names the family, and turns the linear predictor into predictions.
    """

    _parameter_constraints: dict = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "noise": "no_validation",  # validation.py knows what is registered
        "noise_placement": "no_validation",
        "retain_rate": [
            Interval(Real, 0, 1, closed="right"),
            StrOptions({"auto"}),
            "array-like",
        ],
        "noise_std": [Interval(Real, 0, None, closed="left"), "array-like"],
        "method": [StrOptions(set(METHODS))],
        "n_probes": [Interval(Integral, 1, None, closed="left"), None],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "unlabeled_discount": [Interval(Real, 0, None, closed="left")],
        "solver": [StrOptions({"adam", "sgd"})],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "learning_rate_decay": [Interval(Real, 0, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "shuffle": ["boolean"],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    @abstractmethod
    def _encode_target(self, y, dtype, continuing, classes):
        """The target as ints (n_samples,) or floats (n_samples, K)."""

    @abstractmethod
    def _family(self):
        """The family of the target that was encoded last, and its K."""

    @abstractmethod
    def _constant_loss(self, rows):
        """The mean loss of the best constant prediction, in nats."""

    @abstractmethod
    def _scorer(self):
        """A picklable function of a validation set's (eta, y, weight) that returns its score."""

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, X_unlabeled=None):
        """Fit the network.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training data. float32 data are fitted in float32, all others in float64. Sparse
            data are made dense a batch at a time.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Target values.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights. An integer weight is the same as that many copies of the
            row; apart from how rows compare with unlabelled ones, only their ratios matter.
        X_unlabeled : {array-like, sparse matrix} of shape (n_unlabeled, n_features), default=None
            Rows without a target that sharpen the penalty, see `unlabeled_discount`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data are invalid, before any training starts, or if the
            objective becomes non-finite while `early_stopping` is off.
        """
        continuing = self.warm_start and hasattr(self, "net_")
        return self._fit(X, y, sample_weight, X_unlabeled, continuing)

    def _partial_fit(self, X, y, sample_weight, X_unlabeled, classes=None):
        if self.early_stopping:
            raise ValueError(
                "partial_fit does not support early_stopping=True: it sees no fixed data to "
                "validate on. Set early_stopping=False or use fit."
            )
        continuing = hasattr(self, "net_")
        return self._fit(X, y, sample_weight, X_unlabeled, continuing, True, classes)

    def _fit(self, X, y, sample_weight, X_unlabeled, continuing, incremental=False, classes=None):
        """Train a new net, which takes over from the last one if `continuing`, and keep it."""
        before = vars(self).copy()
        try:
            random_state = fresh_random_state(self.random_state)
            rows, valid = self._rows(
                X, y, sample_weight, X_unlabeled, continuing, incremental, classes, random_state
            )
            scale = self.net_.module_.input_scale if continuing else self._input_scale(rows)
            net = self._build_net(rows, draw_seed(random_state), incremental, scale)
            if continuing:
                self._check_layers(net)
                net.take_over(self.net_)
            net.train(rows, valid, 1 if incremental else self.max_iter)
            if net.stop_reason_ == "diverged" and net.best_score_ is None:
                kept = " What was fitted before is kept." if "net_" in before else ""
                raise ValueError(self._diverged(net) + kept)
        except BaseException:
            # What was fitted before is as good as ever.
            vars(self).clear()
            vars(self).update(before)
            raise
        self.net_ = net
        self._store(net)
        self._warn(net, incremental, rows)
        return self

    def _warn(self, net, incremental, rows):
        category, message = ConvergenceWarning, None
        if net.stop_reason_ == "diverged":
            message = self._diverged(net) + " The best weights so far were kept."
        elif net.stop_reason_ == "interrupted":
            category = UserWarning
            message = (
                f"Training was interrupted by the user in epoch {len(net.history) + 1}; the "
                "estimator keeps the weights it had reached."
            )
        elif net.stop_reason_ == "max_iter" and not incremental:
            message = (
                f"Training stopped at max_iter={self.max_iter} epochs before it converged; "
                "increase max_iter, learning_rate_init or tol."
            )
        elif net.stop_reason_ == "converged":
            objective, constant = self.loss_curve_[-1], self._constant_loss(rows)
            if objective > 1.1 * constant:
                message = (
                    f"Training ended at an objective of {objective:.3g}, which is worse than a "
                    f"constant prediction ({constant:.3g}). Scale the features (StandardScaler "
                    "or MinMaxScaler) or lower learning_rate_init."
                )
        if message is not None:
            warnings.warn(message, category, stacklevel=5)

    def _rows(
        self, X, y, sample_weight, X_unlabeled, continuing, incremental, classes, random_state
    ):
        """The training rows and, with early stopping, the validation rows."""
        device = check_device(self.device)
        self._layers()  # wrong sizes and sites are found before the data are looked at
        dtype = self._dtype() if continuing else [np.float64, np.float32]
        if device.type == "mps":
            dtype = np.float32
        checks = {"accept_sparse": "csr", "dtype": dtype, "order": "C"}
        X, y = validate_data(self, X, y, reset=not continuing, multi_output=True, **checks)
        weight = check_weights(sample_weight, X)
        y = self._encode_target(y, X.dtype, continuing, classes)
        weight = weight * self._target_weight(y, weight, incremental)
        if X_unlabeled is not None:
            try:
                X_unlabeled = validate_data(
                    self, X_unlabeled, reset=False, **(checks | {"dtype": X.dtype})
                )
            except ValueError as error:
                raise ValueError(f"X_unlabeled is not like X: {error}") from error
        kept = np.flatnonzero(weight)
        parts = [kept]
        if self.early_stopping:
            parts = self._split(kept, y, random_state)
        features = Features(X, device)
        train, *valid = (self._subset(features, y, weight, part, incremental) for part in parts)
        if X_unlabeled is not None and self.unlabeled_discount > 0:
            mass = self.unlabeled_discount * X_unlabeled.shape[0]
            train.unlabeled = Features(X_unlabeled, device)
            train.unlabeled_share = mass / (mass + weight[parts[0]].sum())
            if incremental:
                train.unlabeled_weight = weight[parts[0]].mean()
        return train, valid[0] if valid else None

    def _subset(self, features, y, weight, index, incremental):
        weight = weight[index]
        if not incremental:
            # Only the ratios of the weights matter; a chunk of a stream cannot know their mean.
            weight = weight / weight.mean()
        unit = np.all(weight == 1)
        weight = None if unit else to_tensor(weight.astype(features.dtype), features.device)
        everything = len(index) == len(features)
        return Rows(
            features,
            to_tensor(y[index], features.device),
            weight,
            index=None if everything else torch.from_numpy(index),
        )

    def _split(self, index, y, random_state):
        try:
            parts = train_test_split(
                index,
                test_size=self.validation_fraction,
                random_state=random_state,
                stratify=y[index] if self._stratifies else None,
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

    _stratifies = False

    def _target_weight(self, y, weight, incremental):
        """A factor of the sample weights that depends on the encoded target."""
        return 1.0

    def _layers(self):
        sizes = check_hidden_layer_sizes(self.hidden_layer_sizes)
        sites = check_sites(self.noise_placement, len(sizes))
        strengths = {"retain_rate": self.retain_rate, "noise_std": self.noise_std}
        return sizes, check_noise(self.noise, sites, strengths)

    def _input_scale(self, rows):
        # adam's steps do not know the units of the features, so they are told; plain sgd is
        # left as it is in the textbooks.
        return rows.feature_scale() if self.solver == "adam" else 1.0

    def _build_net(self, rows, seed, incremental, input_scale):
        hidden, noise = self._layers()
        family, n_outputs = self._family()
        device = rows.features.device
        n_features = rows.features.shape[1]
        callbacks = [] if incremental else [self._stopping(rows)]
        if self.learning_rate_decay > 0:
            callbacks.insert(0, InverseDecay(self.learning_rate_decay))
        batch_size = 200 if self.batch_size == "auto" else self.batch_size
        optimizer = {
            "adam": {"optimizer": torch.optim.Adam},
            "sgd": {"optimizer": torch.optim.SGD, "optimizer__momentum": self.momentum},
        }[self.solver]
        net = MarginalizedNet(
            module__layer_sizes=(n_features, *hidden, n_outputs),
            module__activation=self.activation,
            module__noise=noise,
            module__seed=seed,
            module__dtype=torch.float32 if rows.features.dtype == np.float32 else torch.float64,
            module__input_scale=input_scale,
            criterion__family=family,
            criterion__method=self.method,
            criterion__n_probes=self.n_probes,
            criterion__alpha=float(self.alpha),
            optimizer__fused=device.type in ("cpu", "cuda"),
            optimizer__param_groups=[
                ("layers.0.weight", {"lr": float(self.learning_rate_init) / input_scale})
            ],
            lr=float(self.learning_rate_init),
            batch_size=int(batch_size),
            shuffle=self.shuffle,
            scorer=self._scorer(),
            predict_nonlinearity=family.mean,
            callbacks=callbacks,
            device=str(device),
            seed=seed,
            verbose=int(self.verbose),
            **optimizer,
        )
        return net.initialize()

    def _stopping(self, rows):
        if self.early_stopping:
            return Stopping("valid_score", self.tol, self.n_iter_no_change)
        return Stopping("train_loss", self.tol * self._loss_unit(rows), self.n_iter_no_change)

    def _loss_unit(self, rows):
        """What the tolerance of the objective is measured in, in nats."""
        return 1.0

    def _check_layers(self, net):
        sizes, fitted = (n.get_params()["module__layer_sizes"] for n in (net, self.net_))
        if sizes != fitted:
            raise ValueError(
                f"The layers of the previous call were {fitted}, but hidden_layer_sizes and the "
                f"data now make them {sizes}. Start anew: call fit with warm_start=False."
            )

    def _diverged(self, net):
        return _DIVERGED.format(epoch=len(net.history) + 1, rate=self.learning_rate_init)

    def _store(self, net):
        history = net.history
        scores = [epoch["valid_score"] for epoch in history if "valid_score" in epoch]
        self.n_iter_ = len(history)
        self.loss_curve_ = [epoch["train_loss"] for epoch in history]
        self.penalty_curve_ = [epoch["penalty"] for epoch in history]
        self.validation_scores_ = scores if self.early_stopping else None
        self.best_validation_score_ = net.best_score_

    def _dtype(self):
        weight = self.net_.module_.linears[0].weight
        return np.float32 if weight.dtype == torch.float32 else np.float64

    def _linear_predictor(self, X):
        check_is_fitted(self)
        X = validate_data(
            self, X, reset=False, accept_sparse="csr", dtype=self._dtype(), order="C"
        )
        return self.net_.linear_predictor(Features(X, self.net_.device, resident=False))

    def __sklearn_is_fitted__(self):
        return hasattr(self, "net_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @property
    def coefs_(self):
        """Weights of each layer, a list of arrays of shape (fan_in, fan_out)."""
        return [
            linear.weight.detach().cpu().numpy().T.copy() for linear in self.net_.module_.linears
        ]

    @property
    def intercepts_(self):
        """Intercepts of each layer, a list of arrays of shape (fan_out,)."""
        return [linear.bias.detach().cpu().numpy().copy() for linear in self.net_.module_.linears]
