"""Unlabelled rows have a share of the penalty that does no harm."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
)
from sklearn_margdrop.estimators import discounts
from sklearn_margdrop.estimators.discounts import SHARES, choose_share, first_discount, folds
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.weighting import unlabeled_share


def texts(n, n_classes=4, n_words=600, seed=0):
    """Bags of words of some topics, sparse."""
    rng = np.random.RandomState(seed)
    topics = np.random.RandomState(1).dirichlet(np.full(n_words, 0.05), n_classes)
    y = rng.randint(n_classes, size=n)
    X = [rng.multinomial(30, 0.3 * topics[k] + 0.7 / n_words) > 0 for k in y]
    return sp.csr_array(np.array(X, float)), y


def test_folds_are_alike_and_keep_the_only_row_of_a_class():
    y = torch.tensor([0] * 7 + [1] * 12 + [2])[torch.randperm(20)]
    fold = folds(y, 3)
    assert fold[y == 2].tolist() == [3]
    for k in range(3):
        assert (y[fold == k] == 0).sum() in (2, 3)
        assert (y[fold == k] == 1).sum() == 4
    numbers = folds(torch.arange(20.0)[:, None].flip(0), 4)
    assert [(numbers == k).sum().item() for k in range(4)] == [5] * 4


@pytest.mark.parametrize("losses", [[4, 3, 2, 1], [4, 3, 5, 1], [1, 2, 0, 0], [4, np.inf, 1, 1]])
def test_the_first_share_that_is_not_beaten_by_the_next(losses, monkeypatch):
    rows = Rows(Features(np.zeros((30, 1)), "cpu"), torch.arange(30) % 2)
    tried = []

    def train(part, share):
        tried.append(share)
        return losses[SHARES.index(share)]

    def losses_of(loss, valid):
        return torch.full((len(valid),), float(loss), dtype=torch.float64)

    monkeypatch.setattr(discounts, "losses_of", losses_of)
    worse = [k for k in range(1, 4) if not losses[k] < losses[k - 1]]
    best = worse[0] - 1 if worse else 3
    assert choose_share(train, rows) == SHARES[best]
    assert sorted(set(tried)) == list(SHARES[: min(best + 2, 4)])
    assert len(tried) == discounts.N_FOLDS * min(best + 2, 4)


def test_unlabelled_rows_do_not_harm_and_may_help():
    """A discount of one lets a model be sure of the wrong classes."""
    (X, y), (U, _), (T, truth) = texts(40), texts(1500, seed=1), texts(2000, seed=2)
    without = MarginalizedDropoutGLMClassifier().fit(X, y)
    auto = MarginalizedDropoutGLMClassifier().fit(X, y, X_unlabeled=U)
    assert without.unlabeled_discount_ is None
    assert auto.score(T, truth) >= without.score(T, truth) - 0.005
    all_alike = MarginalizedDropoutGLMClassifier(unlabeled_discount=1.0)
    with pytest.warns(UserWarning, match=r"unlabelled rows make up 97 % .* to 0\.011 or less"):
        all_alike.fit(X, y, X_unlabeled=U)
    assert all_alike.unlabeled_discount_ == 1.0
    assert all_alike.score(T, truth) < without.score(T, truth) - 0.1
    again = MarginalizedDropoutGLMClassifier().fit(X, y, X_unlabeled=U)
    np.testing.assert_array_equal(again.coef_, auto.coef_)


def test_the_chosen_discount_as_a_number_is_the_same_fit():
    (X, y), (U, _) = texts(60), texts(700, seed=1)
    auto = MarginalizedDropoutGLMClassifier().fit(X, y, X_unlabeled=U)
    given = MarginalizedDropoutGLMClassifier(unlabeled_discount=auto.unlabeled_discount_)
    np.testing.assert_array_equal(given.fit(X, y, X_unlabeled=U).coef_, auto.coef_)


def test_few_rows_streams_and_networks_choose_without_folds():
    (X, y), (U, _) = texts(19), texts(200, seed=1)
    model = MarginalizedDropoutGLMClassifier().fit(X, y, X_unlabeled=U)
    assert model.unlabeled_discount_ == 0
    np.testing.assert_array_equal(model.coef_, MarginalizedDropoutGLMClassifier().fit(X, y).coef_)
    stream = MarginalizedDropoutGLMClassifier(solver="adagrad", random_state=0)
    stream.partial_fit(X, y, classes=range(4), X_unlabeled=U)
    assert unlabeled_share(stream.unlabeled_discount_, 200, 19) == pytest.approx(0.03)
    network = MarginalizedDropoutClassifier((4,), max_iter=1, random_state=0)
    network.fit(X.toarray(), y, X_unlabeled=U.toarray())
    assert unlabeled_share(network.unlabeled_discount_, 200, 19) == pytest.approx(0.1)


def test_numbers_and_their_warning():
    with warnings.catch_warnings(action="error"):
        assert first_discount("auto", 0, 10.0) is None
        assert first_discount(1.0, 10, 10.0) == 1.0
        assert first_discount("auto", 2, 100.0) == 1.0
        assert first_discount(0.0, 1000, 10.0) == 0.0
    with pytest.warns(UserWarning, match="67 %"):
        assert first_discount(1.0, 20, 10.0) == 1.0


def test_regressors_choose_too():
    rng = np.random.RandomState(0)
    X, U = rng.normal(size=(40, 30)), rng.normal(size=(300, 30))
    model = MarginalizedDropoutGLMRegressor().fit(X, X[:, 0] + rng.normal(size=40), X_unlabeled=U)
    assert 0 <= model.unlabeled_discount_ <= 0.3 / 0.7 * 40 / 300 + 1e-12
