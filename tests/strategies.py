"""Configurations drawn at random: an estimator, its parameters, data, and a sequence of calls.

A configuration is made of plain values, so that a failure can be printed, stored and pasted into
a test. One function draws it from a `random.Random`: Hypothesis hands it one that it controls and
shrinks, `benchmarks/robustness/soak.py` one that is seeded by the number of the configuration.
What has to hold of each is in `invariances.py`.
"""

import math
import random
from dataclasses import dataclass, field, replace

from contexts import SCENES
from hypothesis import strategies as st

CLASSIFIERS = "MarginalizedDropoutClassifier", "MarginalizedDropoutGLMClassifier"
REGRESSORS = "MarginalizedDropoutRegressor", "MarginalizedDropoutGLMRegressor"
ESTIMATORS = (*CLASSIFIERS, *REGRESSORS)

#: How features are stored.
CONTAINERS = (
    *("array", "fortran", "reversed", "readonly", "list", "pandas", "polars"),
    *("memmap", "memmap r+", "csr_matrix", "csr_array", "csc_matrix", "csc_array"),
    *("coo_matrix", "coo_array", "csr duplicates", "csr int64"),
)
COLUMNS = (
    *("plain", "plain", "constant", "zero", "duplicate", "unequal", "counts", "unit", "one-hot"),
)
DTYPES = "float64", "float32", "float16", "int64", "int8", "uint8", "bool", "object"
LABELS = "int", "str", "bool", "float", "object", "negative int", "category"
TARGET_CONTAINERS = "array", "list", "pandas", "polars", "column", "readonly"
CALLBACKS = "schedule", "named schedule", "early stopping", "training score", "clipping", "class"


@dataclass(frozen=True)
class Data:
    """What `properties.make_data` makes rows, targets and weights of."""

    seed: int = 0
    rows: int = 20
    columns: int = 3
    scale: float = 1.0
    shift: float = 0.0  # of the columns, in their spreads
    density: float = 1.0
    columns_kind: str = "plain"  # or another of `COLUMNS`
    dtype: str = "float64"
    container: str = "array"
    labels: str = "int"
    classes: int = 2
    outputs: int = 0  # 0 is a vector
    separable: bool = False  # whether a column tells the class
    target_scale: float = 1.0
    target_mean: float = 0.0  # in units of the scale
    target_container: str = "array"
    weights: str | None = None  # "random", "zeros", "counts", "list"
    unlabeled: int | None = None
    unlabeled_container: str = "array"
    wrong: str | None = None  # what is invalid about the data


@dataclass(frozen=True)
class Configuration:
    """An estimator, its parameters, data, and what is called.

    `wrong` names the parameter, or `data.wrong` the part of the data, that is invalid, so that the
    first fit has to be an error. `context` is the one of torch that all is repeated in.
    """

    estimator: str
    parameters: dict = field(default_factory=dict)
    data: Data = Data()
    calls: tuple = ("fit",)
    wrong: str | None = None
    context: str = "all"


#: For each parameter values that it must reject. A name in angle brackets stands for an object,
#: see `properties.make_value`.
WRONG = {
    "hidden_layer_sizes": [0, -1, (3, 0), (2.5,), "100", (True,), None, ((2, 3), (4, 5)), 3.0],
    "activation": ["gelu", None, 1, ""],
    "noise": ["salt", None, 0.5, ["dropout"]],
    "noise_placement": ["inputs", [7], [-1], [0, 0], [True], [0.5], ["input"], None, 0.5],
    "retain_rate": [0, 0.0, -0.5, 1.5, math.nan, "high", None, True, math.inf],
    "noise_std": [-1, math.nan, "much", None],
    "method": ["exact", None, "", 1],
    "n_probes": [0, -1, 1.5, "all"],
    "alpha": [-1e-9, math.nan, math.inf, "small", None],
    "unlabeled_discount": [-1.0, math.nan, math.inf, None],
    "solver": ["newton", None, "ADAM"],
    "batch_size": [0, -5, 2.5, "all", None],
    "learning_rate": ["adaptive", None, 0.1],
    "learning_rate_init": [0, -0.1, math.nan, math.inf, "fast", None],
    "learning_rate_decay": [-1, math.nan, None],
    "momentum": [1.1, -0.1, math.nan, None],
    "max_iter": [0, -1, 1.5, None, "many"],
    "tol": [-1e-9, math.nan, None],
    "n_iter_no_change": [0, 1.5, -math.inf, None],
    "early_stopping": ["yes", None, 2],
    "validation_fraction": [1.0, -0.1, math.nan, None],
    "shuffle": ["no", None],
    "warm_start": ["no", None],
    "class_weight": ["even", 1.0, {0: -1.0}, {0: math.nan}, {0: "a"}, {"none": 1.0}, [1.0, 2.0]],
    "pretrainer": ["rbm", 1, "<estimator without components>"],
    "callbacks": [1, ["early"], ["<callback of scikit-learn>"], [("a", "b")]],
    "device": ["abacus", None, 1, "cuda:77"],
    "random_state": ["x", -1, 1.5, "<generator>"],
    "verbose": [-1, "loud"],
    "family": ["gamma", None, "bernoulli", 1],
    "fit_intercept": ["yes", None],
    "n_restarts": [-1, 0.5, None],
    "checkpoint": [1, 0.5, True, ["runs"]],
}

#: What may be wrong with the data.
WRONG_DATA = (
    *("nan", "inf", "no rows", "no columns", "1d", "3d", "complex", "strings", "ragged", "None"),
    *("short y", "nan y", "inf y", "y None", "3d y", "one class", "continuous y", "negative y"),
    *("negative weights", "nan weights", "short weights", "zero weights", "huge weights"),
    *("narrow unlabeled", "nan unlabeled", "no unlabeled", "2d weights"),
)


def draw_configuration(choose: random.Random, wide: bool = True) -> Configuration:
    """A configuration; without `wide`, magnitudes are moderate."""
    estimator = choose.choice(ESTIMATORS)
    data = _draw_data(choose, estimator, wide)
    parameters = _draw_parameters(choose, estimator, data, wide)
    wrong = None
    if choose.random() > 0.85:
        if choose.random() > 0.5:
            wrong = choose.choice(sorted(WRONG.keys() & _parameters(estimator)))
            value = choose.choice(WRONG[wrong])
            parameters |= {wrong: value} | _needed(wrong, estimator, parameters)
        else:
            kinds = [kind for kind in WRONG_DATA if _can_be_wrong(kind, estimator)]
            data = replace(data, wrong=choose.choice(kinds), labels="int")
            if data.wrong == "negative y":
                parameters["family"] = "poisson"
    calls = _draw_calls(choose, estimator, data, wide, wrong or data.wrong)
    context = choose.choice(list(SCENES))
    return Configuration(estimator, parameters, data, calls, wrong, context)


def invalid_configurations(choose: random.Random, estimator):
    """A configuration for each invalid value of each parameter, and for each invalid data."""
    for name in sorted(WRONG.keys() & _parameters(estimator)):
        for value in WRONG[name]:
            parameters = {"max_iter": 1, name: value} | _needed(name, estimator, {})
            data = Data(seed=choose.randint(0, 2**20))
            yield Configuration(estimator, parameters, data, ("fit",), name)
    for kind in WRONG_DATA:
        if _can_be_wrong(kind, estimator):
            family = {"family": "poisson"} if kind == "negative y" else {}
            data = Data(seed=choose.randint(0, 2**20), wrong=kind)
            yield Configuration(estimator, {"max_iter": 1} | family, data)


@st.composite
def configurations(draw, wide=True):
    """Hypothesis's strategy of configurations."""
    return draw_configuration(draw(st.randoms(use_true_random=False)), wide)


def is_glm(estimator):
    return "GLM" in estimator


def _parameters(estimator):
    common = {"noise", "retain_rate", "noise_std", "method", "alpha", "unlabeled_discount"}
    common |= {"solver", "batch_size", "learning_rate_init", "max_iter", "tol", "warm_start"}
    common |= {"device", "random_state", "verbose", "checkpoint"}
    common |= {"class_weight"} if estimator in CLASSIFIERS else {"family"}
    if is_glm(estimator):
        return common | {"fit_intercept", "n_restarts"}
    common |= {"hidden_layer_sizes", "activation", "noise_placement", "n_probes", "momentum"}
    common |= {"learning_rate", "learning_rate_decay", "n_iter_no_change", "early_stopping"}
    return common | {"shuffle", "validation_fraction", "pretrainer", "callbacks"}


def _needed(wrong, estimator, parameters):
    """What else has to be set for a parameter to be looked at."""
    if wrong in ("retain_rate", "noise_std"):
        needed = {"noise": {"retain_rate": "dropout", "noise_std": "gaussian"}[wrong]}
        return needed | ({} if is_glm(estimator) else {"noise_placement": "both"})
    if wrong == "pretrainer":
        return {"hidden_layer_sizes": (3,), "noise_placement": "both", "retain_rate": "auto"}
    if wrong == "noise_placement":
        return {"retain_rate": "auto", "hidden_layer_sizes": (3, 3)}
    return {}


def _can_be_wrong(kind, estimator):
    if kind in ("one class", "continuous y"):
        return estimator in CLASSIFIERS
    return kind != "negative y" or estimator in REGRESSORS


def _draw_data(choose, estimator, wide):
    if choose.random() < 0.03:
        rows, columns = choose.choice([(3, 300), (150, 2), (40, 100)])
    else:
        rows, columns = choose.randint(1, 60), choose.randint(1, 12)
    container = choose.choice(CONTAINERS) if choose.random() > 0.25 else "array"
    exponent = 30 if wide and choose.random() > 0.7 else 6 if wide else 3
    few, labels = choose.random() > 0.5, choose.choice(LABELS)
    return Data(
        seed=choose.randint(0, 2**20),
        rows=rows,
        columns=columns,
        scale=10.0 ** choose.choice([0, 0, 0, choose.randint(-exponent, exponent)]),
        shift=choose.choice([0.0, 0.0, 0.0, 10.0 ** choose.randint(-1, 6)]),
        density=choose.choice([1.0, 1.0, 0.3, 0.05]),
        columns_kind=choose.choice(COLUMNS),
        dtype=choose.choice(DTYPES) if choose.random() > 0.5 else "float64",
        container=container,
        labels=labels,
        classes=2 if labels == "bool" else choose.choice([2, 3] if few else [2, 3, 5, 12, 40]),
        outputs=choose.choice([0, 0, 0, 1, 2, 5]) if estimator in REGRESSORS else 0,
        separable=choose.random() > 0.5,
        target_scale=10.0 ** choose.choice([0, 0, 0, choose.randint(-exponent, exponent)]),
        target_mean=choose.choice([0, 0, -1, 1]) * 10.0 ** choose.randint(0, 6),
        target_container=choose.choice(TARGET_CONTAINERS),
        weights=choose.choice([None, None, "random", "zeros", "counts", "list", "float32"]),
        unlabeled=choose.choice([None, None, None, 1, 7, 100]),
        unlabeled_container=choose.choice(CONTAINERS),
    )


def _power(choose, low, high):
    return 10.0 ** choose.uniform(low, high)


def _draw_parameters(choose, estimator, data, wide, share=0.5):
    """Each parameter is left out half of the time, but for those that make a fit short."""
    one = choose.choice
    strengths = 1e-6 if wide else 0.1
    rate = _power(choose, -8, 8) if wide else _power(choose, -5, 0)
    drawn = {
        "noise": one(["dropout", "gaussian"]),
        "retain_rate": one([0.5, 1, 1.0, 0.9, 0.2, strengths]),
        "noise_std": one([0.0, 0, 0.1, 1.0, 10.0, 1e3 if wide else 1.0]),
        "alpha": one([0, 0.0, 1e-4, 1e-2, 1.0, _power(choose, -8, 8 if wide else 2)]),
        "unlabeled_discount": one([1.0, 0, 0.1, 10.0, 1e6 if wide else 10.0]),
        "batch_size": one([1, 7, 100, 10**9]),
        "tol": one([0, 0.0, 1e-3, 1e9]),
        "warm_start": one([False, True]),
        "verbose": one([False, True, 0, 2]),
        "checkpoint": one([None, None, None, "<folder>", "<folder of each fit>"]),
    }
    always = {"max_iter": choose.randint(1, 6)}
    always["random_state"] = one([0, 1, 2**31, "<RandomState>", "<numpy int>", None])
    if estimator in CLASSIFIERS:
        drawn["class_weight"] = one([None, "balanced", "<some>", "<all>"])
    else:
        always["family"] = one(["normal", "poisson"])
    if is_glm(estimator):
        drawn |= {
            "method": one(["moments", "quadratic", "sampling"]),
            "fit_intercept": one([True, False]),
            "solver": one(["lbfgs", "sgd", "adagrad", "fisher"]),
            "n_restarts": one([0, 1, 3]),
            "learning_rate_init": one(["auto", rate, rate]),
            "device": one(["auto", "cpu", "<device>"]),
        }
    else:
        hidden = one([(5,), (), 1, 7, (4, 3), [6], (3, 2, 2), (64,), "<array>"])
        always["hidden_layer_sizes"] = hidden
        n_hidden = {(): 0, (4, 3): 2, (3, 2, 2): 3, "<array>": 2}.get(
            tuple(hidden) if isinstance(hidden, list) else hidden, 1
        )
        drawn |= {
            "activation": one(["relu", "logistic", "tanh", "identity"]),
            "method": one(["moments", "diagonal", "quadratic", "sampling"]),
            "n_probes": one([None, 1, 2, 100]),
            "solver": one(["adam", "sgd"]),
            "batch_size": one(["auto", 1, 7, 100, 10**9]),
            "learning_rate_init": rate,
            "learning_rate_decay": one([0.0, 0, 0.1, 10.0, 1e6]),
            "momentum": one([0.0, 0, 0.5, 0.99]),
            "n_iter_no_change": one([1, 2, 10, math.inf]),
            "early_stopping": one([False, False, True]),
            "validation_fraction": one([0.1, 0.5, 0.3, 0.9]),
            "shuffle": one([True, False]),
            "device": one(["auto", "cpu", "<device>", "cpu:0"]),
            "pretrainer": one([None, None, None, "<rbm>"]),
            "callbacks": one(
                [None, [], [f"<{one(CALLBACKS)}>"], [f"<{name}>" for name in CALLBACKS[:3]]]
            ),
        }
        drawn |= _draw_sites(choose, n_hidden, strengths)
        scheduled = any("schedule" in each for each in drawn["callbacks"] or ())
        other = scheduled or drawn["learning_rate_decay"] > 0
        always["learning_rate"] = "constant" if other else one(["constant", "cosine"])
    names = sorted(drawn)
    kept = {name: drawn[name] for name in names if choose.random() < share}
    if "noise_placement" in kept and "retain_rate" in drawn:
        kept |= {name: drawn[name] for name in ("retain_rate", "noise_std")}
    elif not is_glm(estimator):
        for name in {"retain_rate", "noise_std"} & kept.keys():
            if isinstance(kept[name], list):
                del kept[name]  # one for each site of a placement that was not kept
    return always | kept


def _draw_sites(choose, n_hidden, strengths):
    one = choose.choice
    some = sorted(choose.sample(range(n_hidden + 1), choose.randint(0, n_hidden + 1)))
    words = {"both": n_hidden + 1, "none": 0, "input": 1, "hidden": n_hidden}
    if n_hidden == 0:
        del words["hidden"]
    placement = one([*words, some])
    n_sites = words[placement] if isinstance(placement, str) else len(some)
    rates = [one([0.5, 0.9, 1, strengths]) for _ in range(n_sites)]
    stds = [one([0.0, 0.1, 1, 10.0]) for _ in range(n_sites)]
    return {
        "noise_placement": placement,
        "retain_rate": one(["auto", 0.5, 1, strengths, rates, ["<array>", *rates]]),
        "noise_std": one([0.1, 0, 1.0, stds, ["<array>", *stds]]),
    }


def _draw_calls(choose, estimator, data, wide, wrong):
    if wrong:
        return ("fit",) if choose.random() < 0.8 else ("partial_fit",)
    calls = [choose.choice(["fit", "fit", "partial_fit"])]
    more = ["fit", "partial_fit", "partial_fit", "clone", "pickle", "predict", "set_params"]
    if is_glm(estimator):
        more += ["sparsify", "densify"]
    for _ in range(choose.randint(0, 3)):
        call = choose.choice(more)
        if call == "set_params":
            drawn = _draw_parameters(choose, estimator, data, wide, share=0.2)
            calls.append((call, drawn))
        elif call == "predict":
            calls.append((call, choose.choice(CONTAINERS)))
        else:
            calls.append(call)
    return tuple(calls)
