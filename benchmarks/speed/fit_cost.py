"""The cost of whole fits, of predictions, and of a generalised linear model on text.

Run ``python -m benchmarks.speed.fit_cost``. Networks: all peers make the same number of epochs
over the same rows with Adam; ours do so through the estimator, with its validation, history and
callbacks. Predictions are compared with the bare matrix products. The text, where there is any
(`text_data.py`), is IMDB: LogisticRegression(lbfgs) and ours each make the fewest iterations that
bring them to within 1e-4 (relative) of the lowest value of their own objective.
"""

import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from benchmarks import image_data, text_data
from benchmarks.harness import Results, parser, take_turns
from benchmarks.speed.peers import random_images, skorch_net, torch_fit
from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier

METHODS = {
    "no noise": {"noise_placement": "none"},
    "sampling": {"method": "sampling"},
    "diagonal": {"method": "diagonal"},
    "moments (default)": {},
    "quadratic, 1 tangent": {"method": "quadratic"},
    "quadratic": {"method": "quadratic", "n_probes": None},
}
TORCH, SKORCH, MLP = "torch, nn.Dropout", "skorch, nn.Dropout", "MLPClassifier"
LBFGS = "LogisticRegression(lbfgs)"


def fits(X, y, hidden, batch_size, epochs, device):
    sizes = (X.shape[1], *hidden, len(np.unique(y)))
    budget = {"max_iter": epochs, "batch_size": batch_size}
    peers = {
        TORCH: lambda: torch_fit(X, y, sizes, batch_size, epochs, device),
        SKORCH: lambda: skorch_net(
            sizes, batch_size, epochs, device, optimizer=torch.optim.Adam, lr=1e-3
        ).fit(X, y),
    }
    for name, settings in METHODS.items():
        model = MarginalizedDropoutClassifier(
            hidden, retain_rate=0.5, device=device, **budget, **settings
        )
        peers[name] = lambda model=model: model.fit(X, y)
    peers[MLP] = lambda: MLPClassifier(hidden, tol=0, n_iter_no_change=10**6, **budget).fit(X, y)
    return peers


def predictions(X, y, hidden, device):
    model = MarginalizedDropoutClassifier(hidden, retain_rate=0.5, max_iter=1, device=device)
    model.fit(X[:1000], y[:1000])
    peer = MLPClassifier(hidden, max_iter=1).fit(X[:1000], y[:1000])
    parameters = [torch.from_numpy(p).to(device) for p in (*model.coefs_, *model.intercepts_)]
    w, v, b, c = parameters

    def bare():
        z = torch.addmm(b, torch.from_numpy(X).to(device), w).relu_()
        return torch.addmm(c, z, v).softmax(1).cpu()

    return {
        "bare matrix products": bare,
        "ours": lambda: model.predict_proba(X),
        MLP: lambda: peer.predict_proba(X),
    }


def enough(make, objective, tolerance=1e-4):
    """The model with the fewest iterations whose objective is near its lowest value."""
    best = objective(make(5000, 1e-12))
    n_iter = 1
    while objective(make(n_iter, 0.0)) > best + tolerance * abs(best):
        n_iter += 1
    return n_iter


def text(X, y):
    """Peers that are equally near the optimum of their own objectives."""

    def lbfgs(n_iter, tol):
        return LogisticRegression(max_iter=n_iter, tol=tol).fit(X, y)

    def value(model):
        loss = log_loss(y, model.predict_proba(X), normalize=False)
        return loss + 0.5 * np.square(model.coef_).sum()

    n_iter = enough(lbfgs, value)
    print(f"{LBFGS}: {n_iter} iterations")
    peers = {LBFGS: lambda: lbfgs(n_iter, 0.0)}
    for method in ("quadratic", "moments"):

        def ours(n_iter, tol, method=method):
            return MarginalizedDropoutGLMClassifier(
                method=method, max_iter=n_iter, tol=tol, device="cpu"
            ).fit(X, y)

        n_iter_ours = enough(ours, lambda model: model.objective_)
        print(f"{method}: {n_iter_ours} iterations")
        peers[method] = lambda ours=ours, n_iter=n_iter_ours: ours(n_iter, 0.0)
    return peers


def main():
    options = parser(__doc__, "device", "turns", "json", "check")
    options.add_argument("--only", choices=["small", "large", "predict", "text"])
    options = options.parse_args()
    warnings.simplefilter("ignore")  # of epochs and iterations that are few on purpose
    results = Results(options)
    turns = options.turns
    wanted = [options.only] if options.only else ["small", "large", "predict", "text"]
    if "small" in wanted:
        X, y, X_test, y_test = image_data.digits()
        X, y = np.concatenate([X, X_test]), np.concatenate([y, y_test])
        peers = fits(X, y, (100,), 100, 200, options.device)
        case = f"fit of {len(X)} digits, 64-100-10, batches of 100, 200 epochs"
        results.add(case, take_turns(peers, turns or 3), [TORCH, SKORCH, MLP], "s")
    X, y = random_images(10_000, 784, 10)
    if "large" in wanted:
        peers = fits(X, y, (1024,), 100, 5, options.device)
        case = "fit of 10000 rows, 784-1024-10, batches of 100, 5 epochs"
        results.add(case, take_turns(peers, turns or 3), [TORCH, SKORCH, MLP], "s")
    if "predict" in wanted:
        X, y = np.tile(X, (5, 1)), np.tile(y, 5)
        peers = predictions(X, y, (1024,), options.device)
        case = "predict_proba of 50000 rows, 784-1024-10"
        results.add(case, take_turns(peers, turns or 7), ["bare matrix products"], "s")
    if "text" in wanted and text_data.FOLDER:
        train, y, *_ = text_data.imdb()
        X = text_data.vectorizer(min_df=2).fit_transform(train)
        case = f"IMDB unigrams, {X.shape[0]} x {X.shape[1]}, to 1e-4 of the optimum"
        print(f"\n{case}")
        results.add(case, take_turns(text(X, y), turns or 5), [LBFGS], "s")
    results.finish()


if __name__ == "__main__":
    main()
