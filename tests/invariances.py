"""What has to hold of every configuration of `strategies.py`.

Either a documented error, before training starts where the input is bad and with the estimator as
it was, or a fit whose parameters and predictions are finite. Either way the inputs and what is
global stay as they were, nothing warns but what is documented, nothing takes for ever, and the
same configuration gives the same bits.
"""

import contextlib
import copy
import io
import pickle
import random
import re
import signal
import warnings
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
import scipy.sparse as sp
import torch
from contexts import SCENES, state
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.neural_network import BernoulliRBM
from skorch import callbacks as skorch_callbacks
from strategies import CLASSIFIERS
from torch.nn.utils import clip_grad_norm_  # noqa: F401  skorch's clipping imports it late

import sklearn_margdrop
from sklearn_margdrop.training.checkpoints import TrainingCheckpoint
from sklearn_margdrop.training.net import MarginalizedNet

#: Seconds of a processor that a configuration may take.
LIMIT = 60

#: What starts the message of an invalid parameter or invalid data that were noticed.
REFUSED = "refused as it should be:"

#: The errors that valid parameters and valid data may end in, because of what they are combined
#: with, and what their messages say. The first that fits is the kind of an error.
DOCUMENTED = {
    "refused,{}": rf"^{REFUSED}",
    "a diverging fit": r"became non-finite in (epoch|iteration)",
    "layers of a warm start": r"The layers of the previous call were",
    "coefficients of a warm start": r"^coef_ has the shape",
    "a validation set": r"early_stopping=True (could not set aside|left fewer)",
    "no validation rows": r"looks at validation rows",
    "early stopping of a stream": r"partial_fit does not support early_stopping",
    "balance of a stream": r"class_weight='balanced' is not supported by partial_fit",
    "partial_fit of L-BFGS": r"partial_fit needs an online solver|has no attribute 'partial_fit'",
    "sampling by L-BFGS": r"method='sampling' draws new noise in each step",
    "sampling of sparse rows": r"makes sparse X dense",
    "one class": r"there is only one class",
    "unseen labels": r"y contains labels .* that are not in classes",
    "other classes": r"(?s)classes=.* are not those of the first call",
    "another family": r"^family was",
    "no hidden layer": r"needs a hidden layer",
    "sites": r"names a site (that does not exist|twice)|has \d+ values for \d+ noisy sites",
    "a pretrainer": r"^pretrainer: '\w+' of \w+ (is not finite|has the shape)",
    "class weights": r"class_weight=.* leaves no row|^The classes, .*, are not in class_weight",
    "zero weights": r"^Sample weights must contain at least one non-zero number",
    "negative targets": r"^y has negative values, which family='poisson'",
    "large targets": r"^y has values above .*, which family='poisson'",
    "values beyond the dtype": r"^\w+ has values of up to .*whose squares are too",
    "units of a target": r"^y (has values of .*Scale y|varies by .*resolve|is up to .*as far)",
    "checkpoint of a stream": r"^partial_fit writes no checkpoint",
    "checkpoint of another fit": r"is of another fit; these differ",
    "checkpoint of a longer fit": r"epochs behind it, more than max_iter=",
}

#: What the errors of invalid data say. Those of scikit-learn's checks are its words.
WRONG_MESSAGES = {
    "nan": r"Input X contains NaN",
    "inf": r"Input X contains infinity",
    "no rows": r"0 sample\(s\)",
    "no columns": r"0 feature\(s\)",
    "1d": r"Expected 2D array, got 1D",
    "3d": r"Found array with dim 3",
    "complex": r"Complex data not supported",
    "strings": r"could not convert string",
    "ragged": r"inhomogeneous|sequence",
    "None": r"Expected 2D array|NoneType",
    "short y": r"inconsistent numbers of samples",
    "nan y": r"contains NaN",
    "inf y": r"contains infinity|Unknown label type",
    "y None": r"requires y to be passed|y cannot be None",
    "3d y": r"Unknown label type|dim 3|bad input shape",
    "one class": r"there is only one class",
    "continuous y": r"Unknown label type",
    "negative y": r"^y has negative values",
    "negative weights": r"Negative values in data passed to `sample_weight`",
    "nan weights": r"Input sample_weight contains NaN",
    "short weights": r"sample_weight.shape ==",
    "zero weights": r"at least one non-zero",
    "huge weights": r"^sample_weight is too large",
    "2d weights": r"Sample weights must be 1D",
    "narrow unlabeled": r"^X_unlabeled is not like X",
    "nan unlabeled": r"^X_unlabeled is not like X",
    "no unlabeled": r"^X_unlabeled is not like X",
}

#: The warnings that are documented.
WARNINGS = {
    "convergence": (ConvergenceWarning, ""),
    "a column for a vector": (DataConversionWarning, "column-vector"),
    "no feature names": (UserWarning, "feature names"),
    "many classes": (UserWarning, "number of unique classes is greater than 50%"),
    "rows of a pretrainer": (UserWarning, r"BernoulliRBM takes its inputs for probabilities"),
}


class Killed(BaseException):
    """Ends a fit as a signal does: nothing knows how to treat it."""


def make_value(is_classifier, value, data, folder):
    """The object that a plain value of a configuration stands for."""
    if isinstance(value, list):
        if value[:1] == ["<array>"]:
            return np.array(value[1:])
        return [make_value(is_classifier, each, data, folder) for each in value]
    makers = {
        "<folder>": lambda: Path(folder, "checkpoint"),
        "<folder of each fit>": lambda: str(Path(folder, "checkpoints", "{fit}")),
        "<array>": lambda: np.array([4, 3]),
        "<RandomState>": lambda: np.random.RandomState(data.seed),
        "<generator>": lambda: np.random.default_rng(data.seed),
        "<numpy int>": lambda: np.int64(3),
        "<device>": lambda: torch.device("cpu"),
        "<some>": lambda: {data_labels(data)[0]: 2.0},
        "<all>": lambda: {label: k + 0.5 for k, label in enumerate(data_labels(data))},
        "<rbm>": lambda: BernoulliRBM(n_iter=1),
        "<estimator without components>": lambda: PCA(),
        "<callback of scikit-learn>": ProgressBar,
        "<schedule>": lambda: skorch_callbacks.LRScheduler("StepLR", step_size=1),
        "<named schedule>": lambda: (
            "rate",
            skorch_callbacks.LRScheduler("ExponentialLR", gamma=0.5),
        ),
        "<early stopping>": lambda: skorch_callbacks.EarlyStopping("train_loss", 1, sink=_quiet),
        "<training score>": lambda: skorch_callbacks.EpochScoring(
            "accuracy" if is_classifier else "r2", on_train=True
        ),
        "<clipping>": lambda: skorch_callbacks.GradientNormClipping(0.1),
        "<class>": lambda: skorch_callbacks.EpochTimer,
    }
    return makers[value]() if isinstance(value, str) and value in makers else value


def _quiet(*args):
    pass


def data_labels(data):
    """The labels of the classes, sorted."""
    numbers = np.arange(data.classes)
    kinds = {
        "str": lambda: np.array([f"c{k:02d}" for k in numbers]),
        "object": lambda: np.array([f"c{k:02d}" for k in numbers], dtype=object),
        "category": lambda: np.array([f"c{k:02d}" for k in numbers], dtype=object),
        "bool": lambda: np.array([False, True]),
        "float": lambda: numbers.astype(float),
        "negative int": lambda: numbers - 3,
    }
    return kinds.get(data.labels, lambda: numbers)()


def make_estimator(configuration, folder):
    """The estimator, unfitted."""
    parameters = make_parameters(configuration.parameters, configuration, folder)
    return getattr(sklearn_margdrop, configuration.estimator)(**parameters)


def make_parameters(parameters, configuration, folder):
    is_classifier = configuration.estimator in CLASSIFIERS
    return {
        name: make_value(is_classifier, value, configuration.data, folder)
        for name, value in parameters.items()
    }


def make_features(data, rows, rng):
    """Dense features as float64, with the values that they have in the dtype of `data`."""
    X = rng.normal(size=(rows, data.columns)) * (
        rng.uniform(size=(rows, data.columns)) < data.density
    )
    if data.columns_kind == "constant":
        X[:, 0] = 1
    elif data.columns_kind == "zero":
        X[:, 0] = 0
    elif data.columns_kind == "duplicate":
        X[:, -1] = X[:, 0]
    elif data.columns_kind == "unequal":
        X = X * 10.0 ** np.linspace(-3, 3, data.columns)
    elif data.columns_kind == "counts":
        X = np.floor(np.abs(X) * 3)
    elif data.columns_kind == "unit":
        X = np.clip(np.abs(X), 0, 1)
    elif data.columns_kind == "one-hot":
        X = np.eye(data.columns)[rng.randint(data.columns, size=rows)]
    X = (X + data.shift) * (1 if data.columns_kind == "unit" else data.scale)
    if data.dtype in ("int64", "int8", "uint8"):
        limits = np.iinfo("int32" if data.dtype == "int64" else data.dtype)
        return np.clip(np.round(X), limits.min, limits.max).astype(data.dtype)
    if data.dtype == "bool":
        return X > 0
    if data.dtype in ("float16", "float32"):
        limit = np.finfo(data.dtype)
        return np.clip(X, limit.min, limit.max).astype(data.dtype)
    return X.astype(data.dtype)


def contain(X, container, folder):
    """`X` in a container."""
    if container.startswith(("cs", "coo")):
        name = container.split()[0].replace("csr", "csr_array") if " " in container else container
        dense = X.astype(float) if X.dtype in (object, np.float16) else X
        matrix = getattr(sp, name)(dense)
        if container == "csr int64":
            matrix.indices, matrix.indptr = (
                each.astype(np.int64) for each in (matrix.indices, matrix.indptr)
            )
        if container == "csr duplicates" and matrix.nnz and matrix.dtype.kind == "f":
            data, rows = matrix.data / 2, np.repeat(np.arange(len(X)), np.diff(matrix.indptr))
            both = [np.concatenate([each, each]) for each in (data, rows, matrix.indices)]
            order = np.argsort(both[1], kind="stable")
            indptr = 2 * matrix.indptr
            return sp.csr_array((both[0][order], both[2][order], indptr), shape=X.shape)
        return matrix
    if container.startswith("memmap") and X.size and X.dtype != object:
        path = Path(folder) / f"{len(list(Path(folder).iterdir()))}.npy"
        np.save(path, X)
        return np.load(path, mmap_mode="r+" if container.endswith("r+") else "r")
    if container == "fortran":
        return np.asfortranarray(X)
    if container == "reversed":
        return X[::-1].copy()[::-1]
    if container == "readonly":
        X = X.copy()
        X.flags.writeable = False
        return X
    if container == "list":
        return X.tolist()
    names = [f"x{k}" for k in range(X.shape[1])]
    if container == "pandas":
        return pd.DataFrame(X, columns=names)
    if container == "polars":
        values = X.astype(np.float32) if X.dtype in (np.float16,) else X
        values = values.astype(float) if values.dtype == object else values
        return pl.DataFrame({name: values[:, k].copy() for k, name in enumerate(names)})
    return X


def make_target(data, estimator, family, X, rng):
    """Labels, each class as often as it fits, or numbers."""
    rows = len(X)
    if estimator in CLASSIFIERS:
        labels, codes = data_labels(data), np.arange(rows) % data.classes
        order = np.argsort(np.asarray(X[:, 0], float)) if data.separable else rng.permutation(rows)
        y = labels[(np.sort(codes) if data.separable else codes)[np.argsort(order)]]
        if data.labels == "category" and data.target_container == "pandas":
            return pd.Series(pd.Categorical(y))
    else:
        y = rng.normal(size=(rows, data.outputs) if data.outputs else rows)
        if family == "poisson":
            y = np.floor(np.abs(y) * 3)
        else:
            y = (y + data.target_mean) * data.target_scale
    if y.ndim == 1 and data.target_container == "column":
        return y[:, None]
    if data.target_container == "list":
        return y.tolist()
    if data.target_container in ("pandas", "polars") and y.ndim == 1:
        return {"pandas": pd.Series, "polars": pl.Series}[data.target_container](y.tolist())
    if data.target_container == "readonly":
        y.flags.writeable = False
    return y


def make_weights(kind, rows, rng):
    """Sample weights, or None."""
    weights = {
        "random": lambda: rng.uniform(0.1, 2, rows),
        "zeros": lambda: (np.arange(rows) % 3 > 0) * 1.0,
        "counts": lambda: rng.randint(0, 4, rows),
        "list": lambda: rng.uniform(0.1, 2, rows).tolist(),
        "float32": lambda: rng.uniform(0.1, 2, rows).astype(np.float32),
    }
    return None if kind is None else weights[kind]()


def spoil(kind, given, data):
    """Make one thing about the arguments of a fit invalid, in place."""
    X, y = np.array(given["X"], dtype=float), np.array(given["y"])
    rows, narrow, labels = len(X), X[:, :-1], data_labels(data)
    if kind in ("nan", "inf"):
        X[0, -1] = float(kind)
        given["X"] = X
    elif kind in ("nan y", "inf y"):
        y = y.astype(float)
        y[-1] = float(kind.split()[0])
        given["y"] = y
    elif kind == "no rows":
        given |= {"X": X[:0], "y": y[:0], "sample_weight": None}
    elif kind == "one class":
        given |= {"y": np.repeat(labels[:1], rows), "classes": labels[:1]}
    elif kind.endswith("weights"):
        first = {"negative": -1.0, "nan": np.nan, "huge": 1.7e308}.get(kind.split()[0], 0.0)
        weights = np.r_[first, np.full(rows - 1, 0.0 if kind == "zero weights" else 1.0)]
        short, wide = kind == "short weights", kind == "2d weights"
        weights = weights[1:] if short else np.ones((rows, 2)) if wide else weights
        given["sample_weight"] = weights
    else:
        name, value = {
            "no columns": ("X", X[:, :0]),
            "1d": ("X", X[:, 0]),
            "3d": ("X", X[None]),
            "complex": ("X", X + 1j),
            "strings": ("X", np.full(X.shape, "a")),
            "ragged": ("X", [[1.0] * (1 + row % 2) for row in range(rows)]),
            "None": ("X", None),
            "short y": ("y", y[1:]),
            "y None": ("y", None),
            "3d y": ("y", y.reshape(rows, -1, 1)),
            "continuous y": ("y", np.arange(rows) + 0.37),
            "negative y": ("y", y - y.max() - 1.0),
            "narrow unlabeled": ("X_unlabeled", narrow),
            "nan unlabeled": ("X_unlabeled", X * np.nan),
            "no unlabeled": ("X_unlabeled", X[:0]),
        }[kind]
        given[name] = value


class Play:
    """The calls of a configuration, one after the other, with what has to hold after each.

    Attributes
    ----------
    seen : Counter
        How often what happened: fits, errors and warnings by kind.
    bits : list of bytes
        The fitted parameters after each call, empty where there are none.
    """

    def __init__(self, configuration, folder):
        self.configuration, self.folder = configuration, folder
        self.seen, self.bits, self.last = Counter(), [], None
        data = configuration.data
        wrong = data.wrong
        if wrong:
            plain = {"container": "array", "target_container": "array", "unlabeled": None}
            data = replace(data, rows=max(data.rows, 2), dtype="float64", **plain)
        self.data, rng = data, np.random.RandomState(data.seed)
        self.is_classifier = configuration.estimator in CLASSIFIERS
        self.dense = make_features(data, data.rows, rng)
        family = configuration.parameters.get("family", "normal")
        y = make_target(data, configuration.estimator, family, self.dense, rng)
        self.given = {"X": contain(self.dense, data.container, folder), "y": y}
        self.given["sample_weight"] = make_weights(data.weights, data.rows, rng)
        if data.unlabeled is not None:
            X_unlabeled = make_features(data, data.unlabeled, rng)
            self.given["X_unlabeled"] = contain(X_unlabeled, data.unlabeled_container, folder)
        if self.is_classifier:
            self.given["classes"] = data_labels(data)
        if wrong:
            spoil(wrong, self.given, data)
        self.model = make_estimator(configuration, folder)
        goes_on = configuration.parameters.get("warm_start") or configuration.calls != ("fit",)
        if (wrong or configuration.wrong) and not goes_on and data.seed % 2:
            self._fit_before(rng)

    def _fit_before(self, rng):
        """A fit that is as it should be, whose result an error has to leave alone."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a fit that is this short
            model = type(self.model)(max_iter=1, random_state=0).fit(
                rng.normal(size=(4, 2)), [0, 1, 0, 1]
            )
        self.model = model.set_params(**self.model.get_params(deep=False))

    def all(self):
        """Perform the calls, and return this."""
        wrong = self.configuration.wrong or self.configuration.data.wrong
        for call in self.configuration.calls:
            name, *arguments = [call] if isinstance(call, str) else call
            if wrong:
                self._attempt(partial(self._is_refused, name, wrong))
            else:
                function = getattr(self, f"_do_{name}", partial(self._fit, name))
                self._attempt(partial(function, *arguments))
            self.bits.append(fitted_bits(self.model))
        return self

    def _attempt(self, function):
        """Call it, and see that nothing has changed but the estimator, if it is no error."""
        before, given, model = _global_state(), _snapshot(self.given), self.model
        state, bits = vars(model).copy(), fitted_bits(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    function()
            except (ValueError, TypeError, AttributeError) as error:
                self.seen[f"error: {_kind(error)}"] += 1
                after = vars(model)
                changed = [k for k in state | after if state.get(k) is not after.get(k)]
                assert not changed, f"an error changed {changed}"
                assert fitted_bits(model) == bits, "an error changed what was fitted"
        assert _snapshot(self.given) == given, "the arguments have changed"
        for name, now in _global_state().items():
            assert now == before[name], f"the call changed {name}"
        for each in caught:
            self.seen[f"warning: {_warning_kind(each)}"] += 1

    def _is_refused(self, name, wrong):
        """The call is an error that says what is wrong, before anything is trained."""
        words = WRONG_MESSAGES.get(self.configuration.data.wrong, wrong)
        trained = AssertionError(f"trained in spite of {wrong}")
        with mock.patch.object(MarginalizedNet, "train", side_effect=trained):
            try:
                self._call(name)
            except (ValueError, TypeError) as error:
                if not re.search(words, str(error)):
                    raise
                raise ValueError(f"{REFUSED} {wrong}") from error
        raise AssertionError(f"fitted in spite of {wrong}")

    def _call(self, name):
        given = self.given.copy()
        if name == "fit":
            given.pop("classes", None)
        getattr(self.model, name)(**given)

    def _fit(self, name):
        model = self.model
        kept = name == "fit" and model.checkpoint is not None
        alone = copy.deepcopy(model).set_params(checkpoint=None) if kept else None
        if not kept or self._is_killed():
            self._call(name)
        self.seen["fits"] += 1
        bits = fitted_bits(model)
        if kept and is_seed(model.random_state):
            self.model = alone
            self._call(name)
            self.model = model
            assert fitted_bits(alone) == bits, "a fit that was killed ended elsewhere"
            self.seen["fits with checkpoints"] += 1
        again = (repr(model.get_params()), model.random_state)
        if name == "fit" and not model.warm_start and isinstance(model.random_state, int):
            assert self.last in (None, (again, bits)) or self.last[0] != again, "other bits"
            self.last = again, bits
        self._check_predictions()

    def _is_killed(self):
        """Begin the fit, and kill it at the end of an epoch; whether it got as far."""
        left = 1 + self.data.seed % 3
        save = TrainingCheckpoint.on_epoch_end

        def save_and_die(checkpoint, net, **kwargs):
            nonlocal left
            save(checkpoint, net)
            left -= 1
            if left == 0:
                raise Killed

        with mock.patch.object(TrainingCheckpoint, "on_epoch_end", save_and_die):
            try:
                self._call("fit")
            except Killed:
                return True
        return False

    def _check_predictions(self):
        model, X = self.model, self.given["X"]
        learned = model.coefs_ if hasattr(model, "coefs_") else _fitted(model)[:2]
        finite = {"parameters": np.concatenate([p.ravel() for p in learned])}
        weight = self.given["sample_weight"]
        left_out = weight is not None and not np.all(weight)
        if left_out and not self.is_classifier and model.family == "poisson":
            # No training has seen these rows, whose means may overflow.
            X = self.dense[np.asarray(weight) > 0]
        elif self.is_classifier or self.data.rows > 1:  # of one row it is nan
            finite["score"] = model.score(X, self.given["y"])
        if self.is_classifier:
            methods = "decision_function", "predict_proba", "predict_log_proba"
            finite |= {method: getattr(model, method)(X) for method in methods}
            np.testing.assert_allclose(finite["predict_proba"].sum(1), 1, rtol=1e-4)
            assert np.isin(model.predict(X), model.classes_).all()
        else:
            finite["predict"] = model.predict(X)
            assert len(finite["predict"]) == (X.shape[0] if hasattr(X, "shape") else len(X))
        for name, values in finite.items():
            assert np.isfinite(values).all(), f"{name} is not finite"

    def _predicted(self, X):
        name = "decision_function" if self.is_classifier else "predict"
        return getattr(self.model, name)(X)

    def _do_predict(self, container):
        """Another container of the same rows gives the same predictions, but for rounding."""
        here = self._predicted(self.given["X"])
        there = self._predicted(contain(self.dense, container, self.folder))
        self._are_close(there, here)
        self.seen["predictions"] += 1

    def _are_close(self, there, here):
        assert there.shape == here.shape
        assert np.isfinite(there).all()
        # What cancels in a row leaves the rounding of what it is made of.
        if self.data.scale <= 1e3 and self.data.columns_kind != "unequal":
            scale = max(1.0, np.abs(here).max(initial=0))
            np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3 * scale)

    def _do_clone(self):
        parameters = self.model.get_params(deep=False)
        self.model = clone(self.model)
        assert self.model.get_params(deep=False).keys() == parameters.keys()
        assert not self.model.__sklearn_is_fitted__()

    def _do_pickle(self):
        before = self.model
        self.model = pickle.loads(pickle.dumps(before))
        assert fitted_bits(self.model) == fitted_bits(before)
        if before.__sklearn_is_fitted__():
            X = self.given["X"]
            here, there = before.predict(X), self.model.predict(X)
            assert np.array_equal(here, there), "a pickle predicts otherwise"

    def _do_set_params(self, parameters):
        made = make_parameters(parameters, self.configuration, self.folder)
        self.model.set_params(**made)

    def _do_sparsify(self):
        self._turn("sparsify")

    def _do_densify(self):
        self._turn("densify")

    def _turn(self, name):
        before = self._predicted(self.given["X"])
        getattr(self.model, name)()
        self._are_close(self._predicted(self.given["X"]), before)


def fit_and_check(configuration, folder):
    """What happened, counted by kind, and the bits of the parameters after each call."""
    play = Play(configuration, folder).all()
    return play.seen, play.bits


def contexts_of(configuration):
    """Those of torch in which the same is to come out."""
    again = [SCENES[configuration.context]] if is_seeded(configuration) else []
    return [contextlib.nullcontext, *again]


def is_seed(random_state):
    """Whether two fits with it are the same."""
    return isinstance(random_state, int | np.integer)


def is_seeded(configuration):
    """Whether each fit of the configuration has a seed."""
    drawn = [configuration.parameters]
    drawn += [call[1] for call in configuration.calls if call[0] == "set_params"]
    return all(parameters.get("random_state") is not None for parameters in drawn)


def _fitted(model):
    """The fitted parameters as arrays; none of an estimator that is not fitted."""
    if not model.__sklearn_is_fitted__():
        return []
    if hasattr(model, "coefs_"):
        return [*model.coefs_, *model.intercepts_]
    coef = model.coef_.toarray() if sp.issparse(model.coef_) else model.coef_
    return [coef, np.asarray(model.intercept_), model.fisher_diagonal_]


def fitted_bits(model):
    """The bits of the fitted parameters."""
    return b"".join(array.tobytes() for array in _fitted(model))


def _global_state():
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "random's generator": random.getstate(),
        "numpy's generator": (name, keys.tobytes(), *rest),
        "torch's generator": torch.get_rng_state().numpy().tobytes(),
        "torch's threads": torch.get_num_threads(),
        "torch's context": state(),
        "numpy's treatment of errors": np.geterr(),
        "the warnings' filters": warnings.filters[:],
    }


def _kind(error):
    """The kind of a documented error; raises any other."""
    if isinstance(error, NotFittedError):
        return "not fitted"
    for kind, words in DOCUMENTED.items():
        if re.search(words, str(error)):
            return kind.format(*str(error).split(REFUSED)[1:])
    raise error


def _warning_kind(warning):
    for kind, (category, words) in WARNINGS.items():
        if issubclass(warning.category, category) and re.search(words, str(warning.message)):
            return kind
    name = warning.category.__name__
    raise AssertionError(f"undocumented {name}: {warning.message}")


def _snapshot(given):
    """The bytes of the arguments of a fit, also of what sparse matrices are made of."""
    parts = []
    for name, each in given.items():
        if sp.issparse(each):
            kinds = ("data", "indices", "indptr", "row", "col")
            arrays = [getattr(each, kind) for kind in kinds if hasattr(each, kind)]
            parts.append((name, type(each), [(a.dtype.str, a.tobytes()) for a in arrays]))
        elif isinstance(each, pl.DataFrame | pl.Series | pd.DataFrame | pd.Series):
            parts.append((name, type(each), pickle.dumps(each.to_numpy().tolist())))
        elif isinstance(each, np.ndarray) and each.dtype != object:
            parts.append((name, each.dtype.str, each.tobytes()))
        else:
            parts.append((name, type(each), pickle.dumps(np.array(each, dtype=object).tolist())))
    return parts


class TooLong(Exception):
    """Raised where a configuration has taken longer than `LIMIT`."""


@contextlib.contextmanager
def time_limit(seconds=LIMIT):
    """Raise `TooLong` in the main thread once the process has computed for so many seconds."""
    if not hasattr(signal, "SIGPROF"):
        yield
        return

    def stop(*args):
        raise TooLong(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
