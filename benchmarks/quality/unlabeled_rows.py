"""Linear models with unlabelled rows, by the part of the penalty that these make up.

Run ``python -m benchmarks.quality.unlabeled_rows`` (a quarter of an hour on two cores). Texts with
200 or 600 labels, 5,000 others without one, and 2,000 to test, as binary counts and as TF-IDF. The
default chooses among the parts by folds of the labelled rows; 1 is a discount of 1.
"""

import warnings

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import log_loss

from benchmarks import harness, text_data
from sklearn_margdrop import MarginalizedDropoutGLMClassifier

#: The six groups, of whose posts 50 words are read.
SIX = (
    "comp.graphics",
    "rec.autos",
    "rec.sport.hockey",
    "sci.med",
    "sci.space",
    "talk.politics.guns",
)
SHARES = [0.0, 0.03, 0.1, 0.3]
N_TEST, N_UNLABELED = 2000, 5000


def texts_of(name):
    """Texts and labels."""
    if name == "six groups":
        posts, groups = text_data.newsgroups(SIX)
        bodies = [post.split("\n\n", 1)[-1] for post in posts]
        words = [" ".join(body.split()[:50]) for body in bodies]
        return words, np.unique(groups, return_inverse=True)[1]
    if name == "IMDB":
        texts, labels, *_ = text_data.imdb()
        chosen = np.random.RandomState(0).permutation(len(texts))[:9000]
        return [texts[k] for k in chosen], np.array(labels)[chosen]
    return text_data.load(name)


def features_of(name, kind):
    texts, labels = texts_of(name)
    if kind == "counts":
        vectorizer = text_data.vectorizer(min_df=2)
    else:
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
    return csr_array(vectorizer.fit_transform(texts)), labels


def measure(X, y, n_labeled, seed):
    """Accuracy and log loss of each share, of a discount of 1 and of the default."""
    order = np.random.RandomState(seed).permutation(len(y))
    labeled, test, rest = np.split(order, [n_labeled, n_labeled + N_TEST])
    rest = rest[:N_UNLABELED]
    discounts = {"alone": None, "default": "auto", "discount 1": 1.0}
    for share in SHARES[1:]:
        discounts[f"share {share}"] = min(1.0, share / (1 - share) * n_labeled / len(rest))
    for name, discount in discounts.items():
        model = MarginalizedDropoutGLMClassifier()
        if discount is None:
            model.fit(X[labeled], y[labeled])
        else:
            model.set_params(unlabeled_discount=discount)
            model.fit(X[labeled], y[labeled], X_unlabeled=X[rest])
        found = model.predict_proba(X[test])
        yield name, (float(model.score(X[test], y[test])), float(log_loss(y[test], found)))


def main():
    parser = harness.parser(__doc__, "splits", "json", splits=3)
    names = ["six groups", *(["RT", "Subj", "IMDB"] if text_data.FOLDER else [])]
    parser.add_argument("--data", nargs="+", default=names)
    parser.add_argument("--labels", type=int, nargs="+", default=[200, 600])
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of the discount of 1
    results, losses, kept = {}, [], []
    for name in options.data:
        for kind in ("counts", "TF-IDF"):
            X, y = features_of(name, kind)
            for n_labeled in options.labels:
                runs = [dict(measure(X, y, n_labeled, seed)) for seed in range(options.splits)]
                means = {each: np.mean([run[each] for run in runs], 0) for each in runs[0]}
                results[f"{name}, {kind}, {n_labeled} labels"] = runs
                print(f"{name}, {kind}, {n_labeled} labels", flush=True)
                for each, (accuracy, loss) in means.items():
                    print(f"    {each:12s} {100 * accuracy:5.1f} % / {loss:.3f}", flush=True)
                accuracies = {each: accuracy for each, (accuracy, _) in means.items()}
                gain = accuracies.pop("default") - accuracies["alone"]
                best = max(accuracies.values()) - accuracies["alone"]
                losses.append(-gain)
                if best > 0.01:
                    kept.append(gain / best)
    print(f"The unlabelled rows cost at most {100 * max(losses):.1f} points at the default.")
    if kept:
        print(f"Where the best share gains a point, it keeps at least {100 * min(kept):.0f} %.")
    harness.store(options.json, results=results)


if __name__ == "__main__":
    main()
