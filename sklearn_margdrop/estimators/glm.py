"""The generalised linear models: no hidden layers, sparse data, full-batch or online solvers."""

from __future__ import annotations

from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sklearn_margdrop.distributed.collections import is_dask
from sklearn_margdrop.distributed.partitions import PartitionedRows, Partitions
from sklearn_margdrop.estimators.base import BaseMarginalizedEstimator, Call
from sklearn_margdrop.estimators.coefficients import Coefficients
from sklearn_margdrop.estimators.dask_data import partitioned_rows
from sklearn_margdrop.estimators.discounts import choose_share
from sklearn_margdrop.estimators.nets import TargetNet
from sklearn_margdrop.estimators.scales import ColumnSums, auto_alpha, auto_retain_rate
from sklearn_margdrop.estimators.sklearn_private import Interval, StrOptions
from sklearn_margdrop.estimators.targets import Target
from sklearn_margdrop.estimators.validation import check_noise, draw_seed
from sklearn_margdrop.methods import GLM_METHODS
from sklearn_margdrop.noise import NOISE_MODELS, Noise
from sklearn_margdrop.numerics.devices import to_array
from sklearn_margdrop.training.batches import Features, Host, Rows
from sklearn_margdrop.training.callbacks import GradientStopping, Stopping
from sklearn_margdrop.training.checkpoints import TrainingCheckpoint
from sklearn_margdrop.training.curvatures import Start, information
from sklearn_margdrop.training.solvers import GLM_SOLVERS, one_of
from sklearn_margdrop.training.units import conversion
from sklearn_margdrop.weighting import discount_of_share, unlabeled_share

#: A feature is far from zero if rounding may change it by so many of its standard deviations.
_MOST_LOST = 1e-5

#: What was learned, and may be set by hand.
_COEFFICIENTS = "coef_", "intercept_"

#: As many rows as a stream is taken to have, where "auto" depends on their number.
_ROWS_OF_STREAM = 10_000

#: Epochs without progress after which an online solver ends.
_PATIENCE = 5


def _unit(target: Target, rows: Rows) -> float:
    """The unit of `tol` in nats; of rare labels it is small, as the loss of a constant is."""
    return min(target.loss_unit(rows), target.constant_loss(rows) or 1.0)


def _rows_of_stream(shares: NDArray[np.float64], n_rows: int) -> int:
    """Those of which a first chunk is taken to be a part, given where its features occur."""
    occurring = shares[shares > 0]
    # More rows would bring more words, each as rare.
    is_text = len(occurring) and np.median(occurring) * n_rows < 1.5 and shares.mean() < 0.5
    return n_rows if is_text else _ROWS_OF_STREAM


def _last_objective(net: TargetNet) -> float:
    """The objective that a fit ended at; infinite if it failed."""
    ended_well = net.history and net.stop_reason_ != "diverged"
    return float(net.history[-1, "train_loss"]) if ended_well else np.inf


def is_online(estimator: Any) -> bool:
    """Whether the solver takes batches, so that there is a `partial_fit`."""
    full_batch = [name for name, solver in GLM_SOLVERS.items() if solver.full_batch]
    if estimator.solver in full_batch:
        online = one_of(name for name in GLM_SOLVERS if name not in full_batch)
        raise AttributeError(f"partial_fit needs an online solver; set solver to {online}.")
    return True


class BaseMarginalizedGLM(Coefficients):
    """Base of the generalised linear models."""

    objective_: float
    penalty_: float
    retain_rate_: float | None
    alpha_: float
    fisher_diagonal_: NDArray[Any]
    restart_objectives_: NDArray[np.float64]
    _n_rows_seen: int
    _auto_rate: tuple[str, float]

    _parameter_constraints: dict[str, Any] = {
        **BaseMarginalizedEstimator._parameter_constraints,
        "retain_rate": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="right")],
        "alpha": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "noise_std": [Interval(Real, 0, None, closed="left")],
        "method": [StrOptions(GLM_METHODS.keys())],
        "fit_intercept": ["boolean"],
        "solver": [StrOptions(GLM_SOLVERS.keys())],
        "n_restarts": [Interval(Integral, 0, None, closed="left")],
        "learning_rate_init": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
    }

    _solvers = GLM_SOLVERS
    _keeps_sparse = True
    _step = "iteration"

    def _check_parameters(self) -> None:
        self._noise()
        if self._solver.full_batch and GLM_METHODS[self.method].is_sampled:
            raise ValueError(
                f"method={self.method!r} draws new noise in each step, which solver="
                f"{self.solver!r} cannot follow; set solver to 'sgd' or 'adagrad', or method to "
                "'moments', the expectation that sampling estimates."
            )

    def _rows(self, call: Call, *data: Any) -> tuple[Rows, Rows | None]:
        if self._solver.full_batch and is_dask(*data):
            if self.checkpoint is not None:
                raise ValueError(
                    "A fit on Dask collections writes no checkpoint: set checkpoint=None."
                )
            return partitioned_rows(self, call, *data), None
        rows, valid = super()._rows(call, *data)
        if rows.features.dtype == np.float32 and call.device.type != "mps":
            centre = self._known_centre() if call.continuing and call.incremental else None
            rows = rows.widened() if len(self._far_columns(rows, centre)) else rows
        return rows, valid

    def _known_centre(self) -> Tensor | None:
        """That of the features of a stream so far."""
        net = getattr(self, "net_", None)  # a sparsified model has none
        return None if net is None else net.module_.centre

    def _centres(self) -> bool:
        """Whether optimisers step in the coordinates of centred features."""
        if not self._solver.about_zero:
            return bool(self.fit_intercept)
        at_zero, at_one = self._noise()[0].variance(torch.arange(2, dtype=torch.float32))
        return bool(self.fit_intercept and at_zero == at_one)

    def _far_columns(self, rows: Rows, centre: Tensor | None = None) -> NDArray[np.int64]:
        """The features so far from zero that what they tell is near the rounding of products.

        The rows of a stream, which may be a single one, differ from its `centre` as well.
        """
        if not self._centres():
            return np.zeros(0, np.int64)
        mean, deviation = rows.moments
        if centre is not None:
            deviation = torch.hypot(deviation, mean - centre.to(mean))
        lost = float(np.finfo(rows.features.dtype).eps) * mean.abs() > _MOST_LOST * deviation
        return to_array(lost & (deviation > 0)).nonzero()[0]

    def _lost(self, rows: Rows) -> str | None:
        far = self._far_columns(rows)
        if not len(far):
            return None
        mean, deviation = (values[far] for values in rows.moments)
        distance = float((mean.abs() / deviation).max())
        shown = ", ".join(map(str, far[:5])) + (", ..." if len(far) > 5 else "")
        dtype = str(rows.features.dtype)
        wider = " or pass float64" if dtype == "float32" else ""
        return (
            f"The mean of features (here of the columns {shown}) is up to {distance:.1e} standard "
            f"deviations from zero, at which {dtype} hardly tells their values apart. Centre them "
            f"(StandardScaler){wider}."
        )

    def _noise(self) -> dict[int, Noise]:
        rate = self.retain_rate
        if rate == "auto":  # before there are data, any rate will do
            rate = getattr(self, "retain_rate_", None) or 0.5
        strengths = {"retain_rate": rate, "noise_std": self.noise_std}
        return check_noise(self.noise, (0,), strengths)

    def _features(self, X: Host, call: Call) -> Features:
        is_sampled = GLM_METHODS[self.method].is_sampled and not isinstance(X, np.ndarray)
        if is_sampled and self._noise()[0].variance(torch.zeros(1, dtype=torch.float32)).any():
            raise ValueError(
                f"noise={self.noise!r} makes sparse X dense, so that it cannot be sampled; "
                "use method='moments', the expectation that sampling estimates."
            )
        return super()._features(X, call)

    def _train(self, rows: Rows, valid: Rows | None, call: Call) -> TargetNet:
        self._find_strengths(rows, call)
        first = None if call.checkpoints is None else call.checkpoints.of(0)
        self._choose_discount(rows, call, first)
        nets = []
        restarts = 0 if call.incremental or call.continuing else self.n_restarts
        for attempt in range(1 + restarts):
            net = self._build_net(rows, call, draw_seed(call.random_state))
            if call.continuing:
                self._go_on(net, call.incremental)
            else:
                self._start(net, rows, call.incremental, at_random=attempt > 0)
            net.unlabeled_discount_ = self.unlabeled_discount_
            checkpoint = first
            if call.checkpoints is not None and attempt > 0:
                checkpoint = call.checkpoints.of(attempt)
            epochs = 1 if call.incremental else self.max_iter
            self._optimise(net, rows, call, epochs, call.watcher, checkpoint)
            nets.append(net)
            if net.stop_reason_ == "interrupted":
                break
        objectives = [_last_objective(net) for net in nets]
        self.restart_objectives_ = np.array(objectives)
        best = nets[np.argmin(objectives)]
        if nets[-1].stop_reason_ == "interrupted" and best.stop_reason_ != "diverged":
            best.stop_reason_ = "interrupted"  # as the fit was, whichever of its nets is kept
        return best

    def _optimise(self, net: TargetNet, rows: Rows, call: Call, epochs: int, *watch: Any) -> None:
        """Train from the present parameters, watched by callbacks and a checkpoint, if any."""
        self._find_centre(net, rows, call.continuing)
        predict_mean = partial(self._start, net, rows, False, at_random=False)
        auto_rate = self.learning_rate_init == "auto"
        net.optimizer_.prepare(
            Start(net, rows, predict_mean, call.continuing, call.incremental, auto_rate)
        )
        net.train(rows, None, epochs, *watch)
        if self._solver.full_batch:
            # That of the next call is another.
            net.module_.linears[0].register_buffer("centre", None)

    def _choose_discount(
        self, rows: Rows, call: Call, checkpoint: TrainingCheckpoint | None
    ) -> None:
        """Let held-out labelled rows choose the discount, unless it is given.

        With online solvers and on Dask collections the unlabelled rows have a small share of the
        penalty instead.
        """
        unlabeled = rows.unlabeled
        if unlabeled is None or self.unlabeled_discount != "auto" or not self._solver.full_batch:
            return

        def train(labelled: Rows, share: float) -> TargetNet:
            labelled.unlabeled = unlabeled if share > 0 else None
            labelled.unlabeled_share = share
            net = self._build_net(labelled, call, seed=0)
            net.verbose = 0
            self._start(net, labelled, False, at_random=False)
            self._optimise(net, labelled, call, self.max_iter)
            if net.stop_reason_ == "interrupted":
                raise KeyboardInterrupt
            return net

        size = len(unlabeled), call.total_weight
        discount = None if checkpoint is None else checkpoint.stored("unlabeled_discount_")
        if discount is None:
            discount = discount_of_share(choose_share(train, rows), *size)
        self.unlabeled_discount_ = discount
        rows.unlabeled_share = unlabeled_share(discount, *size)
        if discount == 0:
            rows.unlabeled = None

    def _find_strengths(self, rows: Rows, call: Call) -> None:
        """Set what "auto" stands for; the first rows of a stream decide for all of it."""
        given: dict[str, Any] = {"retain_rate": self.retain_rate, "alpha": self.alpha}
        if NOISE_MODELS[self.noise].parameter != "retain_rate":
            given["retain_rate"] = None
        if call.incremental and call.continuing:
            for name in given:
                known = getattr(self, f"{name}_", None)
                given[name] = known if given[name] == "auto" and known else given[name]
        if "auto" in given.values():
            n_rows, sums = self._column_sums(rows, call)
            if given["retain_rate"] == "auto":
                given["retain_rate"] = auto_retain_rate(sums)
            rate = given["retain_rate"] or 1.0
            if given["alpha"] == "auto":
                given["alpha"] = auto_alpha(sums, n_rows, (1 - rate) / rate)
                if self._solver.plain:  # whose steps would be more than all of the coefficients
                    given["alpha"] = min(given["alpha"], 1.0)
        rate = given["retain_rate"]
        self.retain_rate_ = None if rate is None else float(rate)
        self.alpha_ = float(given["alpha"])

    def _column_sums(self, rows: Rows, call: Call) -> tuple[float, ColumnSums]:
        """What "auto" depends on: the number of rows, and sums over them."""
        mean, deviation = (to_array(each) for each in rows.moments)
        shares = to_array(rows.occurrences)
        n_rows = _rows_of_stream(shares, len(rows)) if call.incremental else call.total_weight
        about_mean = n_rows * deviation**2
        about_zero = about_mean + n_rows * mean**2
        return n_rows, ColumnSums(
            n_rows * shares, about_zero, about_mean if self.fit_intercept else about_zero
        )

    def _build_net(self, rows: Rows, call: Call, seed: int) -> TargetNet:
        online = not self._solver.full_batch
        callbacks = []
        if not call.incremental:
            unit = _unit(call.target, rows)
            callbacks.append(
                Stopping("train_loss", 0.1 * self.tol * unit, _PATIENCE)
                if online
                else GradientStopping(self.tol * unit**0.5)
            )
        net = self._new_net(
            rows,
            call,
            (),
            seed,
            module__noise=self._noise(),
            module__seed=None,
            criterion__alpha=self.alpha_,
            module__fit_intercept=self.fit_intercept,
            module__centre_input=online and self._centres(),
            lr=self._learning_rate(rows, call),
            batch_size=int(self.batch_size) if online else -1,
            shuffle=True,
            callbacks=callbacks,
        )
        if isinstance(rows, PartitionedRows):
            net.engine_ = Partitions(rows.bundles)
        return net

    def _find_centre(self, net: TargetNet, rows: Rows, continuing: bool) -> None:
        """Let the centre be the mean of the features; online solvers keep their first."""
        if not self._centres():
            return
        (linear,) = net.module_.linears
        full_batch = self._solver.full_batch
        if not full_batch and continuing and self._known_centre() is not None:
            return  # it has been taken over
        mean, deviation = rows.moments
        if full_batch:
            # Nothing is left of constant features but rounding, which would be divided by alpha.
            mean = mean.where(deviation > 0, 0.0)
        linear.register_buffer("centre", mean.to(linear.weight))

    def _learning_rate(self, rows: Rows, call: Call) -> float:
        if not self._solver.full_batch and self.learning_rate_init != "auto":
            return float(self.learning_rate_init)
        # What depends on the rows is decided by the first.
        solver, rate = getattr(self, "_auto_rate", (None, 0.0)) if call.continuing else (None, 0.0)
        if solver != self.solver:
            rate, family = self._solver.learning_rate, call.target.family
            if self._solver.plain:
                eta = family.link(call.target.mean(rows, incremental=True))
                rate /= max(1.0, float(family.curvature(eta).max()))
        self._auto_rate = self.solver, rate
        return rate

    def _start(self, net: TargetNet, rows: Rows, incremental: bool, at_random: bool) -> None:
        """The best constant prediction, or random coefficients of that order of magnitude."""
        (linear,) = net.module_.linears
        with torch.no_grad():
            if self.fit_intercept:
                linear.bias.copy_(net.target.family.link(net.target.mean(rows, incremental)))
            if at_random:
                fisher = information(net, rows, self._solver.full_batch)
                draw = torch.randn(
                    fisher.shape, generator=net.order_generator_, dtype=torch.float32
                )
                # Predictions vary by about one, if features are independent; those that do not
                # occur stay out of it.
                scale = (fisher * linear.in_features).rsqrt()
                weight = torch.where(fisher > 0, draw.to(scale) * scale, 0.0)
                if net.target.family.shifts_alike:
                    weight -= weight.mean(0)
                linear.weight.copy_(weight)

    def _go_on(self, net: TargetNet, incremental: bool) -> None:
        """From the fitted coefficients, which may have been set by hand."""
        (linear,) = net.module_.linears
        coef = torch.tensor(np.atleast_2d(self._dense_coef()))
        if coef.shape != linear.weight.shape:
            raise ValueError(
                f"coef_ has the shape {tuple(coef.shape)}, but the data need "
                f"{tuple(linear.weight.shape)}. Start anew: call fit with warm_start=False."
            )
        if hasattr(self, "net_") and self.net_.module__fit_intercept == self.fit_intercept:
            net.take_over(self.net_, incremental)
            own = self._attributes(self.net_)
            if all(np.array_equal(own[name], getattr(self, name)) for name in _COEFFICIENTS):
                return  # to the last bit
        factor, shift = conversion(None, net.target.units)
        with torch.no_grad():
            linear.weight.copy_(coef * torch.from_numpy(factor).unsqueeze(1))
            if self.fit_intercept:
                intercept = np.atleast_1d(self.intercept_) * factor + shift
                linear.bias.copy_(torch.from_numpy(intercept))

    def _store(self, net: TargetNet, rows: Rows, incremental: bool) -> None:
        diagonal = information(net, rows, self._solver.full_batch)
        fisher = self._as_fitted(diagonal.cpu().numpy())
        self.__dict__.update(self._attributes(net))
        self.n_iter_ = net.n_epochs
        self.objective_ = net.history[-1, "train_loss"] if net.history else np.nan
        self.penalty_ = net.history[-1, "penalty"] if net.history else np.nan
        seen = self._n_rows_seen if incremental and hasattr(self, "fisher_diagonal_") else 0
        self._n_rows_seen = seen + len(rows)
        if seen:
            share = len(rows) / self._n_rows_seen
            fisher = share * fisher + (1 - share) * self.fisher_diagonal_
        self.fisher_diagonal_ = fisher

    def _smaller(self, on_gpu: bool) -> list[str]:
        if not self._solver.full_batch:
            return [f"lower batch_size (now {self.batch_size})"]
        return ["pass float32", "set solver to 'sgd' or 'adagrad', which take batches"]

    def _not_converged(self) -> str:
        return (
            f"Training stopped at max_iter={self.max_iter} iterations before it converged; "
            "increase max_iter, tol or alpha, or scale the features (StandardScaler, "
            "MaxAbsScaler)."
        )

    def _where(self, net: TargetNet) -> str:
        restart = len(self.restart_objectives_) - 1
        return f"restart {restart}" if restart else super()._where(net)

    def _stalled(self, net: TargetNet, rows: Rows) -> str:
        if not self._solver.full_batch:
            return super()._stalled(net, rows)
        decrement, unit = net.optimizer_.decrement, _unit(net.target, rows) ** 0.5
        dtype = str(net.module__dtype).removeprefix("torch.")
        changes = ["pass float64"] if dtype == "float32" else []
        eps = torch.finfo(net.module__dtype).eps
        if 0.5 * decrement**2 < 10 * eps * max(abs(net.history[-1, "train_loss"]), unit**2):
            distance = "about as near to the minimum as that precision allows"
            changes.append(f"raise tol to {1.1 * decrement / unit:.1e}")
        else:
            distance = "above what tol asks for"
            changes += ["scale the features (StandardScaler, MaxAbsScaler)", "increase alpha"]
        return (
            f"Training stalled in iteration {net.n_epochs}: no step lowers the objective in "
            f"{dtype}, and the norm of its gradient is {decrement:.1e}, {distance} (tol="
            f"{self.tol:g} stands for {self.tol * unit:.1e}). What may help: "
            f"{', or '.join(changes)}."
        )

    def _diverged(self, net: TargetNet) -> str:
        change = (
            "weaken the noise (raise retain_rate, lower noise_std)"
            if self._solver.full_batch
            else f"lower learning_rate_init (now {net.lr:g}), weaken the noise (raise "
            "retain_rate, lower noise_std)"
        )
        return (
            f"The objective, the coefficients or the predictions became non-finite in iteration "
            f"{net.n_epochs + 1}; {change}, increase alpha, or scale the features."
        )
