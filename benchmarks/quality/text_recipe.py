"""From TF-IDF and LogisticRegression to the linear model: 3,000 labelled reviews of IMDB.

Run ``python -m benchmarks.quality.text_recipe`` (ten minutes). Words, and words with pairs, as
TF-IDF and as binary counts: LogisticRegression with the best of five `C`, the default linear
model, and the same with 20,000 reviews that have no label. Scored on 5,000 others.
"""

import time
import warnings

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV

from benchmarks import harness, text_data
from sklearn_margdrop import MarginalizedDropoutGLMClassifier

N_LABELED, N_UNLABELED, N_TEST = 3000, 20_000, 5000
C = [0.3, 1, 3, 10, 30]


def models():
    regression = LogisticRegression(max_iter=1000)
    yield "LogisticRegression, tuned", GridSearchCV(regression, {"C": C}, cv=3), False
    yield "linear model", MarginalizedDropoutGLMClassifier(), False
    yield "with unlabelled rows", MarginalizedDropoutGLMClassifier(), True


def measure(seed, pairs, kind):
    """Yield the name, accuracy, log loss and seconds of each model."""
    texts, labels, others, truth, unlabeled = text_data.imdb()
    rng = np.random.RandomState(seed)
    chosen, test = (
        rng.permutation(len(labels))[:N_LABELED],
        rng.permutation(len(truth))[:N_TEST],
    )
    options = {"ngram_range": (1, 2 if pairs else 1), "min_df": 3}
    if kind == "counts":
        vectorizer = text_data.vectorizer(**options)
    else:
        vectorizer = TfidfVectorizer(sublinear_tf=True, **options)
    train = [texts[k] for k in chosen]
    rest = unlabeled[:N_UNLABELED]
    vectorizer.fit(train + rest)
    X, U, Z = (
        csr_array(vectorizer.transform(each)) for each in (train, rest, [others[k] for k in test])
    )
    for name, model, takes_unlabeled in models():
        begin = time.perf_counter()
        more = {"X_unlabeled": U} if takes_unlabeled else {}
        model.fit(X, labels[chosen], **more)
        seconds = time.perf_counter() - begin
        found = model.predict_proba(Z)
        accuracy = float(np.mean(model.predict(Z) == truth[test]))
        yield name, (accuracy, float(log_loss(truth[test], found)), seconds)


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = {}
    for pairs in (False, True):
        for kind in ("TF-IDF", "counts"):
            runs = [dict(measure(seed, pairs, kind)) for seed in range(options.splits)]
            case = f"{kind}, {'words and pairs' if pairs else 'words'}"
            results[case] = runs
            for name in runs[0]:
                accuracy, loss, seconds = np.mean([run[name] for run in runs], 0)
                print(f"{case:24s} {name:26s} {100 * accuracy:.1f} % {loss:.3f} {seconds:.1f} s")
    harness.store(options.json, results=results)


if __name__ == "__main__":
    main()
