"""The defaults of the linear models against scikit-learn's, on dense tables and on TF-IDF.

Run ``python -m benchmarks.quality.glm_defaults`` (ten minutes). Tables, standardised and as they
are, against LogisticRegression, Ridge and PoissonRegressor at their defaults; texts, a third of
them to learn from, against LogisticRegression with the best of seven `C` on the same features.
"""

import warnings

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import d2_tweedie_score, log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from benchmarks import harness, suite_data, text_data
from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor

TABLES = [
    *("iris", "wine", "breast cancer", "digits", "unbalanced", "twenty classes", "census"),
    *("newsgroups, SVD", "IMDB, SVD", "diabetes", "Friedman 1", "bicycles, logarithms"),
    *("bicycles", "doctor visits"),
]
PEERS = {"label": LogisticRegression(max_iter=1000), "normal": Ridge()}
PEERS["poisson"] = PoissonRegressor(max_iter=1000)
TUNED = GridSearchCV(
    LogisticRegression(max_iter=1000), {"C": [0.1, 0.3, 1, 3, 10, 30, 100]}, scoring="neg_log_loss"
)


def ours(kind):
    if kind == "label":
        return MarginalizedDropoutGLMClassifier()
    return MarginalizedDropoutGLMRegressor(family=kind)


def scores(model, X, y, kind):
    """Accuracy and log loss of labels, otherwise the explained part of the deviance."""
    if kind == "label":
        return [float(np.mean(model.predict(X) == y)), float(log_loss(y, model.predict_proba(X)))]
    power = 1 if kind == "poisson" else 0
    return [float(d2_tweedie_score(y, model.predict(X), power=power))]


def tables(splits):
    """Yield the name, and the scores of both models on each split."""
    for name in [each for each in TABLES if each in suite_data.available()]:
        data = suite_data.DATA[name]
        forms = {name: data}
        if data.features is StandardScaler:
            forms[f"{name}, not scaled"] = data._replace(features=FunctionTransformer)
        for form, features in forms.items():
            runs = []
            suite_data.DATA[name] = features
            for seed in range(splits):
                X, y, X_test, y_test, kind = suite_data.load(name, seed)
                models = {"ours": ours(kind), "peer": PEERS[kind]}
                runs.append(
                    {who: scores(m.fit(X, y), X_test, y_test, kind) for who, m in models.items()}
                )
            suite_data.DATA[name] = data
            yield form, runs


def texts(splits):
    for name in text_data.available():
        posts, y = text_data.load(name)
        for kind in ("counts", "TF-IDF"):
            runs = []
            for seed in range(splits):
                train, test, y_train, y_test = train_test_split(
                    posts, y, train_size=1 / 3, random_state=seed, stratify=y
                )
                counts = text_data.vectorizer()
                vectorizer = counts if kind == "counts" else TfidfVectorizer(sublinear_tf=True)
                X, X_test = vectorizer.fit_transform(train), vectorizer.transform(test)
                models = {"ours": ours("label"), "peer": TUNED}
                runs.append(
                    {
                        who: scores(m.fit(X, y_train), X_test, y_test, "label")
                        for who, m in models.items()
                    }
                )
            yield f"{name}, {kind}", runs


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=3)
    parser.add_argument("--only", choices=["tables", "texts"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that end at max_iter
    results = {}
    for part, found in (("tables", tables), ("texts", texts)):
        if options.only in (None, part):
            for name, runs in found(options.splits):
                results[name] = runs
                own, peer = (np.mean([run[who] for run in runs], 0) for who in ("ours", "peer"))
                difference = " ".join(f"{each:+.4f}" for each in own - peer)
                print(f"{name:32s} {np.round(own, 4)} peer {np.round(peer, 4)}: {difference}")
    harness.store(options.json, results=results)


if __name__ == "__main__":
    main()
