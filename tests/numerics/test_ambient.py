"""The context of torch around a call does not change what it computes, and is left as it was."""

import contextlib
import copy
import functools
import pickle
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from contexts import CONTEXTS, SCENES, all_contexts, left_alone, setting, state
from invariances import fitted_bits
from joblib import Parallel, delayed
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import Dataset

import sklearn_margdrop.inspection as inspection
from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.distributed.partitions import _message, call, pack
from sklearn_margdrop.estimators import predictors
from sklearn_margdrop.estimators.dask_data import Part, _bundle
from sklearn_margdrop.estimators.labels import Labels
from sklearn_margdrop.families import FAMILIES
from sklearn_margdrop.methods import METHODS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.numerics.ambient import neutral, neutral_steps
from sklearn_margdrop.numerics.csr import as_torch
from sklearn_margdrop.numerics.sparse import SparseMatrix
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.training.batches import Batches, Features, Rows
from sklearn_margdrop.training.lbfgs import FisherLBFGS
from sklearn_margdrop.training.state import net_state
from sklearn_margdrop.weighting import Scales, WeightedRows

mpl.use("Agg")
import matplotlib.pyplot as plt

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


RNG = np.random.RandomState(0)
X = RNG.normal(size=(40, 5)) * (RNG.uniform(size=(40, 5)) < 0.7)
ETA = X @ RNG.normal(size=5)
TARGETS = {
    "two": np.where(ETA > 0, "b", "a"),
    "three": np.digitize(ETA, [-0.8, 0.8]),
    "numbers": ETA + RNG.normal(size=40),
    "columns": np.column_stack([ETA, -ETA]),
    "counts": RNG.poisson(np.exp(0.3 * ETA)),
    "labels": np.column_stack([ETA > 0, X[:, 0] > 0]).astype(int),
}
DATA = {"dense": X, "float32": X.astype(np.float32), "sparse": sp.csr_array(X)}
UNLABELED = RNG.normal(size=(10, 5))

NETWORK = {"hidden_layer_sizes": (4, 3), "max_iter": 2, "batch_size": 20, "random_state": 0}
NETWORK |= {"retain_rate": 0.5}
GLM = {"max_iter": 2, "batch_size": 20, "random_state": 0}
classifier = functools.partial(MarginalizedDropoutClassifier, **NETWORK)
regressor = functools.partial(MarginalizedDropoutRegressor, **NETWORK)
glm_classifier = functools.partial(MarginalizedDropoutGLMClassifier, **GLM)
glm_regressor = functools.partial(MarginalizedDropoutGLMRegressor, **GLM)

#: How to make an estimator, and the data and target of its fit.
FITS = {
    "pairs": (classifier, "dense", "three"),
    "pairs, chosen rates": (functools.partial(classifier, retain_rate="auto"), "float32", "two"),
    "diagonal, sparse": (
        functools.partial(classifier, method="diagonal", activation="logistic"),
        "sparse",
        "two",
    ),
    "quadratic": (
        functools.partial(classifier, method="quadratic", n_probes=None),
        "float32",
        "three",
    ),
    "probes": (
        functools.partial(classifier, method="quadratic", n_probes=1, solver="sgd"),
        "dense",
        "three",
    ),
    "sampling": (functools.partial(classifier, method="sampling"), "float32", "two"),
    "stopping": (functools.partial(classifier, early_stopping=True), "dense", "two"),
    "labels": (functools.partial(classifier, method="quadratic"), "float32", "labels"),
    "numbers": (functools.partial(regressor, noise="gaussian", noise_std=0.1), "dense", "columns"),
    "counts": (
        functools.partial(regressor, family="poisson", method="quadratic", activation="tanh"),
        "float32",
        "counts",
    ),
    "numbers, sampling": (
        functools.partial(regressor, method="sampling", solver="sgd"),
        "sparse",
        "numbers",
    ),
    "moments": (functools.partial(glm_classifier, n_restarts=1), "dense", "three"),
    "moments, sparse": (glm_classifier, "sparse", "three"),
    "moments, two": (glm_classifier, "float32", "two"),
    "glm, quadratic": (functools.partial(glm_classifier, method="quadratic"), "sparse", "two"),
    "adagrad": (functools.partial(glm_classifier, solver="adagrad"), "float32", "three"),
    "fisher": (functools.partial(glm_classifier, solver="fisher"), "sparse", "three"),
    "fisher, nearly no noise": (
        functools.partial(glm_classifier, solver="fisher", retain_rate=1 - 1e-9),
        "dense",
        "two",
    ),
    "glm, sampling": (
        functools.partial(glm_classifier, solver="sgd", method="sampling"),
        "dense",
        "two",
    ),
    "glm, sampling, sparse": (
        functools.partial(glm_regressor, solver="sgd", method="sampling", retain_rate=1e-5),
        "sparse",
        "numbers",
    ),
    "glm, numbers": (glm_regressor, "dense", "columns"),
    "glm, counts": (functools.partial(glm_regressor, family="poisson"), "sparse", "counts"),
    "glm, counts, dense": (
        functools.partial(glm_regressor, family="poisson", solver="adagrad"),
        "dense",
        "counts",
    ),
}


def train(name):
    """A fit, and for those that can a call of partial_fit after it."""
    make, container, target = FITS[name]
    X, y = DATA[container], TARGETS[target]
    model = make().fit(X, y, np.linspace(1, 2, 40), X_unlabeled=UNLABELED)
    if hasattr(model, "partial_fit") and not getattr(model, "early_stopping", False):
        model.partial_fit(X, y)
    return model


def outcome(model, container, target):
    """What was learned, with the state of the optimiser, and what is predicted, to the bit."""
    X, y = DATA[container], TARGETS[target]
    known = net_state(model.net_)["learned"]
    learned = {name: known[name] for name in ("weights", "optimizer", "noise", "order")}
    methods = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    predicted = [getattr(model, name)(X) for name in methods if hasattr(model, name)]
    return {
        "parameters": fitted_bits(model),
        "net": pickle.dumps(learned),
        "curve": model.loss_curve_,
        "restarts": np.asarray(getattr(model, "restart_objectives_", 0.0)).tolist(),
        "predictions": [(each.dtype, each.tolist()) for each in predicted],
        "score": model.score(X, y),
    }


@functools.cache
def reference(name):
    return outcome(train(name), *FITS[name][1:])


@functools.cache
def model_of(name):
    return train(name)


@pytest.mark.parametrize("context", SCENES)
@pytest.mark.parametrize("name", FITS)
def test_a_fit_is_the_same_in_every_context(name, context):
    expected = reference(name)
    with left_alone(SCENES[context]):
        assert outcome(train(name), *FITS[name][1:]) == expected


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["quadratic", "moments", "adagrad"])
def test_each_context_alone(name, context):
    expected = reference(name)
    with left_alone(CONTEXTS[context]):
        assert outcome(train(name), *FITS[name][1:]) == expected


@pytest.mark.parametrize("name", ["pairs", "probes", "counts", "moments", "adagrad", "fisher"])
def test_training_goes_on_in_another_context(name):
    make, container, target = FITS[name]
    X, y = DATA[container], TARGETS[target]
    found = []
    for contexts in (
        [contextlib.nullcontext] * 3,
        [torch.inference_mode, contextlib.nullcontext, all_contexts],
        [contextlib.nullcontext, all_contexts, torch.no_grad],
    ):
        model = make(warm_start=True)
        for context in contexts:
            with context():
                model.fit(X, y)
        found.append(outcome(model, container, target))
    assert found[1] == found[0]
    assert found[2] == found[0]


def displayed(function, *args, **options):
    try:
        display = function(*args, **options)
        return {k: np.asarray(v).tolist() for k, v in vars(display).items() if k[-1] != "_"}
    finally:
        plt.close("all")


def written(write, folder):
    path = folder / "file"
    write(path)
    return path.read_bytes()


def plain(value):
    """Lists and numbers; of a tensor, which is to be one as any other, with its dtype."""
    if torch.is_tensor(value):
        assert not value.requires_grad
        assert not value.is_inference()
        return value.dtype, value.tolist()
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def weights(net):
    return [w.tolist() for w in net.module_.state_dict().values()]


def reloaded(net, X, y, folder):
    twin = copy.deepcopy(net)
    net.save_params(f_params=folder / "w", f_optimizer=folder / "o", f_history=folder / "h")
    twin.initialize().load_params(folder / "w", folder / "o", f_history=folder / "h")
    loaded = weights(twin)
    return loaded, weights(twin.partial_fit(X, y))


#: Each public method of an estimator, and what to look at.
METHOD_CALLS = {
    "fit": lambda model, X, y, folder: fitted_bits(copy.deepcopy(model).fit(X, y)),
    "partial_fit": lambda model, X, y, folder: fitted_bits(copy.deepcopy(model).partial_fit(X, y)),
    "predict": lambda model, X, y, folder: model.predict(X),
    "predict_proba": lambda model, X, y, folder: model.predict_proba(X),
    "predict_log_proba": lambda model, X, y, folder: model.predict_log_proba(X),
    "decision_function": lambda model, X, y, folder: model.decision_function(X),
    "score": lambda model, X, y, folder: model.score(X, y, np.linspace(1, 2, 40)),
    "sparsify": lambda model, X, y, folder: copy.deepcopy(model).sparsify().predict(X),
    "densify": lambda model, X, y, folder: copy.deepcopy(model).sparsify().densify().coef_,
    "to_onnx": lambda model, X, y, folder: written(model.to_onnx, folder),
    "classes_": lambda model, X, y, folder: model.classes_.tolist(),
    "n_outputs_": lambda model, X, y, folder: model.n_outputs_,
    "coefs_": lambda model, X, y, folder: [each.tolist() for each in model.coefs_],
    "intercepts_": lambda model, X, y, folder: [each.tolist() for each in model.intercepts_],
    "pickle": lambda model, X, y, folder: pickle.loads(pickle.dumps(model)).score(X, y),
    "deepcopy": lambda model, X, y, folder: weights(copy.deepcopy(model).net_),
    "html": lambda model, X, y, folder: "Network" in model._repr_html_(),
    "penalty_per_sample": lambda model, X, y, folder: inspection.penalty_per_sample(model, X),
    "effective_penalty": lambda model, X, y, folder: {
        site: part.tolist() for site, part in inspection.effective_penalty(model, X).items()
    },
    "FisherScalingDisplay": lambda model, X, y, folder: displayed(
        inspection.FisherScalingDisplay.from_predictions,
        X,
        np.linspace(0.1, 0.9, 40),
        np.linspace(-1, 1, 5),
    ),
    "RegularizationPathDisplay": lambda model, X, y, folder: displayed(
        inspection.RegularizationPathDisplay.from_estimator,
        model,
        X,
        y,
        kind="score",
        cv=2,
        retain_rates=[0.5],
    ),
    "TrainingCurveDisplay": lambda model, X, y, folder: displayed(
        inspection.TrainingCurveDisplay.from_estimator, model
    ),
}

#: scikit-learn's own methods, which have nothing to do with torch.
WITHOUT_TORCH = {"get_params", "set_params", "get_metadata_routing", "set_callbacks"}


def public(kind):
    """The public methods and properties of a class, without scikit-learn's requests."""
    names = {name for name in dir(kind) if not name.startswith("_")}
    names -= {name for name in names if name.startswith("set_") and name.endswith("_request")}
    return {name for name in names if callable(getattr(kind, name)) or name.endswith("_")}


KINDS = {
    MarginalizedDropoutClassifier: "quadratic",
    MarginalizedDropoutRegressor: "counts",
    MarginalizedDropoutGLMClassifier: "moments",
    MarginalizedDropoutGLMRegressor: "glm, counts, dense",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_public_method_is_the_same_in_every_context(kind, tmp_path):
    assert public(kind) <= METHOD_CALLS.keys() | WITHOUT_TORCH
    assert set(inspection.__all__) <= METHOD_CALLS.keys()
    name = KINDS[kind]
    model = model_of(name)
    X, y = DATA[FITS[name][1]], TARGETS[FITS[name][2]]
    known = public(type(model)) | set(inspection.__all__) | {"pickle", "deepcopy", "html"}
    for method in sorted(known & METHOD_CALLS.keys()):
        if hasattr(type(model), method) and not hasattr(model, method):
            continue  # partial_fit of L-BFGS
        call = functools.partial(METHOD_CALLS[method], model, X, y, tmp_path)
        expected = call()
        with left_alone(all_contexts):
            found = call()
        np.testing.assert_equal(found, expected, err_msg=method)


#: The methods of a net that users call. What else is public is called by these.
NET_CALLS = {
    "fit": lambda net, X, y, folder: weights(copy.deepcopy(net).fit(X, y)),
    "partial_fit": lambda net, X, y, folder: weights(copy.deepcopy(net).partial_fit(X, y)),
    "predict": lambda net, X, y, folder: net.predict(X),
    "predict_proba": lambda net, X, y, folder: net.predict_proba(X),
    "score": lambda net, X, y, folder: net.score(X, y),
    "forward": lambda net, X, y, folder: net.forward(X),
    "forward of lists": lambda net, X, y, folder: net.forward(X.tolist()),
    "forward with noise": lambda net, X, y, folder: copy.deepcopy(net).forward(X, training=True),
    "forward_iter": lambda net, X, y, folder: list(net.forward_iter(X)),
    "forward_iter of a data set": lambda net, X, y, folder: list(net.forward_iter(Dataset(X, y))),
    "linear_predictor": lambda net, X, y, folder: net.linear_predictor(net.get_dataset(X)),
    "initialize": lambda net, X, y, folder: weights(copy.deepcopy(net).initialize()),
    "set_params": lambda net, X, y, folder: weights(
        copy.deepcopy(net).set_params(module__seed=3).partial_fit(X, y)
    ),
    "save_params, load_params": lambda net, X, y, folder: reloaded(net, X, y, folder),
    "deepcopy": lambda net, X, y, folder: weights(copy.deepcopy(net)),
}


@pytest.mark.parametrize("name", ["quadratic", "counts", "adagrad", "glm, counts, dense"])
@pytest.mark.parametrize("method", NET_CALLS)
def test_the_net_is_the_same_in_every_context(name, method, tmp_path):
    net = model_of(name).net_
    X, y = DATA[FITS[name][1]], TARGETS[FITS[name][2]]
    call = functools.partial(NET_CALLS[method], net, X, y, tmp_path)
    expected = call()
    for context in (all_contexts, torch.enable_grad, torch.inference_mode):
        with left_alone(context):
            found = call()
        assert plain(found) == plain(expected)


@pytest.mark.parametrize("data_set", [np.asarray, lambda X: Dataset(X, np.zeros(len(X)))])
def test_who_takes_predictions_one_by_one_is_not_in_their_context(data_set):
    net = model_of("pairs").net_.set_params(batch_size=20)
    many = np.tile(X, (2, 1))
    for context in CONTEXTS.values():
        with context():
            before = state()
            iterator = net.forward_iter(data_set(many))
            next(iterator)
            assert state() == before
        del iterator  # unfinished
    assert torch.is_grad_enabled()


def test_predictions_within_a_training_loop():
    model, weight = model_of("pairs"), torch.ones(3, requires_grad=True)
    for _ in range(2):
        loss = (torch.as_tensor(model.predict_proba(X)) @ weight.double()).sum()
        loss = loss + sum((each @ weight.double()).sum() for each in model.net_.forward_iter(X))
        loss.backward()
    assert weight.grad.abs().sum() > 0


def test_small_probabilities():
    X = DATA["float32"]
    model = glm_classifier().fit(X, TARGETS["three"])
    model.coef_ = np.zeros_like(model.coef_)
    model.intercept_ = np.array([-95, 0, -1], dtype=np.float32)
    (linear,) = model.net_.module_.linears
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.from_numpy(model.intercept_))
    for predict_proba in (model.predict_proba, model.net_.predict_proba):
        expected = predict_proba(X)
        assert 0 < expected[0, 0] < np.finfo(np.float32).tiny
        with left_alone(CONTEXTS["denormals"]):
            found = predict_proba(X)
        assert found.tobytes() == expected.tobytes()


def test_predictions_end_in_a_neutral_context(monkeypatch):
    """Also what is made of the linear predictor, by a family of the user's, say."""
    seen = []

    def look(tensor):
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert torch.get_default_device().type == "cpu"
        seen.append(tensor)
        return tensor

    monkeypatch.setattr(predictors, "check_finite", look)
    for name in [*KINDS.values(), "labels"]:
        model, (_, container, target) = model_of(name), FITS[name]
        for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
            if hasattr(model, method):
                seen.clear()
                with all_contexts():
                    getattr(model, method)(DATA[container])
                assert seen, method
        seen.clear()
        with all_contexts():
            model.score(DATA[container], TARGETS[target])
        assert seen


def test_a_nonlinearity_of_the_user():
    net = copy.deepcopy(model_of("counts").net_)
    net.set_params(predict_nonlinearity=lambda eta: eta @ eta.T)
    expected = net.predict_proba(X)
    with left_alone(all_contexts):
        found = net.predict_proba(X)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_is_left_alone_after_an_error(context):
    class Fail(Callback):
        def on_batch_end(self, net, **kwargs):
            raise KeyError("a user's")

    model = model_of("pairs")
    with left_alone(CONTEXTS[context]):
        with pytest.raises(KeyError, match="a user's"):
            classifier(callbacks=[Fail()]).fit(X, TARGETS["three"])
        with pytest.raises(ValueError, match="features"):
            model.predict(X[:, 1:])
        with pytest.raises(ValueError, match="method"):
            inspection.penalty_per_sample(model, X, method="sampling")


def test_callbacks_see_a_neutral_context():
    seen = []

    class Look(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(state())

    with all_contexts():
        scores = EpochScoring("accuracy", on_train=True)
        classifier(callbacks=[Look(), scores]).fit(X, TARGETS["three"])
        dtype = torch.get_default_dtype()
    before = state()
    for name in ("gradients", "device", "flushes denormals"):
        assert seen[-1][name] == before[name]
    assert not any(enabled for enabled, _ in seen[-1]["autocast"])
    assert seen[-1]["dtype"] == dtype  # of the process


@pytest.mark.parametrize("name", ["quadratic", "adagrad"])
def test_threads_and_processes(name):
    expected = reference(name)
    arguments = FITS[name][1:]

    def in_thread(context):
        with left_alone(context):
            return outcome(train(name), *arguments)

    with all_contexts(), ThreadPoolExecutor(2) as pool:
        found = list(pool.map(in_thread, [contextlib.nullcontext, torch.inference_mode]))
        found += Parallel(2, backend="threading")(
            delayed(in_thread)(context) for context in (torch.no_grad, contextlib.nullcontext)
        )
    for each in found:
        assert each == expected


@pytest.mark.parametrize("context", ["default device", "float16", "float64"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_engine_makes_tensors_like_its_inputs(method, sparse, context):
    hidden = [] if sparse or method == "moments" else [4]

    def terms():
        network = NoisyNetwork([5, *hidden, 3], noise={0: Dropout(0.8)}, dtype=torch.float64)
        x = SparseMatrix([sp.csr_array(X)]) if sparse else torch.from_numpy(X)
        batch = WeightedRows.of(x, torch.from_numpy(TARGETS["three"]))
        objective = Objective(FAMILIES["categorical"](), method, n_probes=1, alpha=0.1)
        generator = torch.Generator().manual_seed(0)
        found = [*objective(network, batch, generator)]
        found += objective.backward(network, batch, generator)
        found += [p.grad for p in network.parameters()]
        return [each.tolist() for each in found]

    expected = terms()
    with CONTEXTS[context]():
        assert terms() == expected


def test_partitions_are_evaluated_alike_by_every_worker():
    network = NoisyNetwork([5, 3], noise={0: Dropout(0.8)}, dtype=torch.float64)
    objective = Objective(FAMILIES["categorical"](), "moments")
    message = _message(objective, network)

    options = pack({"function": torch.square, "penalty": True})
    target, _ = Labels.of(TARGETS["three"], np.float64)

    def results(context):
        with left_alone(context):
            bundle = _bundle(
                [Part(X, TARGETS["three"], np.ones(40))],
                target,
                "cpu",
                np.zeros(0),
                np.ones(()),
                Scales(1 / 40, 1 / 40, 0.0),
            )
            yield call(bundle, "evaluate", message).tolist()
            yield call(bundle, "curvature", (*message, options)).tolist()

    expected = list(results(contextlib.nullcontext))
    for scene in SCENES.values():
        assert list(results(scene)) == expected


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_rows_under_a_default_device():
    rows = Rows(Features(X, "cpu"), torch.from_numpy(TARGETS["three"]))

    def batches():
        generator = torch.Generator().manual_seed(0)
        return [(b.x.tolist(), b.y.tolist()) for b in Batches(rows, 20, True, generator)]

    def product():
        return (as_torch(sp.csr_array(X)) @ torch.from_numpy(X.T)).tolist()

    expected = batches(), product()
    with torch.device("meta"):
        assert (batches(), product()) == expected


def test_an_optimiser_of_our_own_under_a_default_device():
    with torch.device("meta"):
        x = torch.nn.Parameter(torch.ones(2, device="cpu"))
        optimizer = FisherLBFGS([{"params": [x]}])
        optimizer.precondition([torch.ones(2, device="cpu")])
        optimizer.forget()
        assert not any(each.is_meta for each in vars(optimizer).values() if torch.is_tensor(each))


def test_neutral_is_like_no_context_at_all():
    plain = state()
    for context in CONTEXTS.values():
        with context(), neutral():
            seen = state()
            assert seen["gradients"] == plain["gradients"]
            assert seen["device"] == plain["device"]
            assert not seen["flushes denormals"]
            assert not any(enabled for enabled, _ in seen["autocast"])
            w = torch.ones(2, dtype=torch.float64, requires_grad=True)
            (w * w * w).sum().backward()
            assert w.grad.tolist() == [3, 3]
            with neutral():
                assert state()["device"] == plain["device"]


def test_steps_end_and_fail_as_they_are():
    def steps():
        yield 1
        raise KeyError("inside")

    with left_alone(all_contexts):
        assert list(neutral_steps(iter([1, 2]))) == [1, 2]
        iterator = neutral_steps(steps())
        assert next(iterator) == 1
        with pytest.raises(KeyError, match="inside"):
            next(iterator)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["pairs", "quadratic", "numbers", "moments", "adagrad"])
def test_with_a_gpu(name):
    """A default device that is there is no more heard than one that is not."""
    make, container, target = FITS[name]
    data, y = DATA[container], TARGETS[target]
    assert_same = np.testing.assert_array_equal
    for device in ("cpu", "cuda"):
        expected = make(device=device).fit(data, y)
        for context in (
            lambda: setting(lambda: None, torch.set_default_device, "cuda"),
            lambda: torch.autocast("cuda", dtype=torch.bfloat16),
            all_contexts,
        ):
            with left_alone(context):
                found = make(device=device).fit(data, y)
                assert_same(found.predict(data), expected.predict(data))
            assert fitted_bits(found) == fitted_bits(expected)
