"""The retain rates that a fit chooses by short trainings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from quick import classifier
from sklearn.datasets import make_gaussian_quantiles

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor
from sklearn_margdrop.estimators import strengths
from sklearn_margdrop.estimators.strengths import RETAIN_RATES, choose
from sklearn_margdrop.families import Normal
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.training.net import MarginalizedNet

USUAL, *OTHERS = RETAIN_RATES
SEED = {"random_state": 0}


@pytest.fixture(autouse=True)
def _whole_trials(monkeypatch):
    monkeypatch.setattr(strengths, "N_STEPS", 250)


@pytest.fixture(scope="module")
def shells():
    """Nothing but exact boundaries, which noise at the input hides."""
    return make_gaussian_quantiles(n_samples=600, n_features=4, n_classes=2, random_state=0)


@pytest.fixture
def trials(monkeypatch):
    """The retain rates of the short trainings, as they are made."""
    made = []
    train = MarginalizedNet.train

    def watched(self, rows, valid, epochs, *args):
        if not args:
            made.append([noise.strength for noise in self.module__noise.values()])
        return train(self, rows, valid, epochs, *args)

    monkeypatch.setattr(MarginalizedNet, "train", watched)
    return made


def rows_of(n, weight=None):
    X = np.arange(n, dtype=np.float64)[:, None]
    return Rows(Features(X, torch.device("cpu")), torch.zeros(n, 1, dtype=torch.float64), weight)


def judged(errors, rows, valid=None, sites=(0, 1), exploded=()):
    """The choice where each training has these errors, and what it was told."""
    told = []

    def train(rates, rows, epochs):
        told.append((rates, rows, epochs))

        def predict(valid):
            index = valid.take(slice(0, len(valid))).flatten().long()
            return torch.as_tensor(errors[rates], dtype=torch.float64).expand(1000)[index, None]

        return SimpleNamespace(
            target=SimpleNamespace(family=Normal()),
            linear_predictor=predict,
            n_explosions_=int(rates in exploded),
        )

    return *choose(RETAIN_RATES, sites, train, rows, valid, 10), told


def test_the_lowest_loss_wins():
    for best in RETAIN_RATES:
        errors = {rates: 1.0 if rates == best else 2.0 for rates in RETAIN_RATES}
        chosen, losses, _ = judged(errors, rows_of(100))
        assert chosen == best
        assert losses == {rates: error**2 / 2 for rates, error in errors.items()}


def test_the_usual_rates_are_kept_unless_others_are_clearly_better():
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for gain, is_clear in [(0.01, False), (1.0, True)]:
        errors = dict.fromkeys(RETAIN_RATES, 3 + noise)
        errors[OTHERS[0]] = 3 - gain + noise.flip(0)
        chosen, _, _ = judged(errors, rows_of(1000))
        assert (chosen == OTHERS[0]) == is_clear
        assert chosen in (USUAL, OTHERS[0])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_trainings_that_ended_badly_are_not_chosen(bad):
    errors = dict.fromkeys(RETAIN_RATES, bad)
    assert judged(errors, rows_of(100))[0] == USUAL
    errors[OTHERS[1]] = 7.0
    assert judged(errors, rows_of(100))[0] == OTHERS[1]


def test_trainings_that_exploded_are_not_chosen():
    errors = {rates: float(index) for index, rates in enumerate(RETAIN_RATES)}
    assert judged(errors, rows_of(100), exploded=[USUAL])[0] == OTHERS[0]
    assert judged(errors, rows_of(100), exploded=[USUAL, *OTHERS[:2]])[0] == OTHERS[2]
    assert judged(errors, rows_of(100), exploded=RETAIN_RATES)[0] == USUAL


def test_weights_count_in_the_judgement():
    """Only rows without weight speak for the usual rates."""
    weight = torch.ones(100, dtype=torch.float64)
    weight[::2] = 1e-9
    errors = {rates: torch.full((1000,), 2.0) for rates in RETAIN_RATES}
    errors[OTHERS[0]] = torch.where(torch.arange(1000) % 2 == 0, 9.0, 1.0)
    assert judged(errors, rows_of(100))[0] == USUAL
    assert judged(errors, rows_of(100, weight))[0] == OTHERS[0]


def test_held_out_rows_are_not_trained_on():
    _, _, told = judged(dict.fromkeys(RETAIN_RATES, 1.0), rows_of(100))
    assert [rates for rates, _, _ in told] == list(RETAIN_RATES)
    for _, rows, epochs in told:
        assert len(rows) == 80
        assert len(rows.index.unique()) == 80
        assert epochs == 32  # 250 steps of 8 each
    valid = rows_of(30)
    _, _, told = judged(dict.fromkeys(RETAIN_RATES, 1.0), rows_of(100), valid)
    assert {len(rows) for _, rows, _ in told} == {100}


def test_of_many_rows_a_part_is_enough():
    _, _, told = judged(dict.fromkeys(RETAIN_RATES, 1.0), rows_of(9000), rows_of(10))
    assert {(len(rows), epochs) for _, rows, epochs in told} == {(2500, 1)}


def test_too_few_rows_tell_nothing():
    assert judged({}, rows_of(19)) == (USUAL, {}, [])


@pytest.mark.parametrize(("sites", "n_trials"), [((0,), 4), ((1, 2), 2), ((0, 2), 4)])
def test_each_combination_is_tried_once(sites, n_trials):
    _, losses, _ = judged(dict.fromkeys(RETAIN_RATES, 1.0), rows_of(100), sites=sites)
    assert len(losses) == n_trials


def test_noise_is_left_out_where_it_hides_the_boundaries(shells, trials):
    X, y = shells
    model = MarginalizedDropoutClassifier(32, **SEED).fit(X, y)
    assert trials == [list(rates) for rates in RETAIN_RATES]
    assert model.retain_rate_ == (1.0, 1.0)
    assert not model.net_.module_.noise
    noisy = MarginalizedDropoutClassifier(32, retain_rate=[0.8, 0.5], **SEED).fit(X, y)
    assert noisy.retain_rate_ is None
    assert model.score(X, y) > noisy.score(X, y)


def test_noise_stays_where_labels_are_random(shells):
    X, _ = shells
    y = np.random.default_rng(0).integers(2, size=len(X))
    assert MarginalizedDropoutClassifier(32, **SEED).fit(X, y).retain_rate_ != (1.0, 1.0)


def test_weighted_float32_rows(shells):
    X, y = shells
    model = classifier().fit(X.astype(np.float32), y, sample_weight=1 + y)
    assert model.retain_rate_ == (1.0, 1.0)


def test_the_choice_depends_on_the_data_alone(shells):
    X, y = shells
    models = [classifier(random_state=seed, max_iter=30).fit(X, y) for seed in (0, 1, None)]
    assert len({model.retain_rate_ for model in models}) == 1
    assert len({model.net_.seed for model in models}) == 3


def test_the_choice_leaves_the_fit_as_it_is_with_these_rates(shells):
    X, y = shells
    auto = classifier().fit(X, y)
    assert auto.retain_rate_ == (1.0, 1.0)
    given = classifier(retain_rate=list(auto.retain_rate_)).fit(X, y)
    np.testing.assert_array_equal(auto.predict_proba(X), given.predict_proba(X))


@pytest.mark.parametrize(
    "options",
    [
        {"retain_rate": 0.9},
        {"noise": "gaussian"},
        {"noise_placement": "none"},
        {"retain_rate": [0.9, 0.8]},
    ],
    ids=str,
)
def test_nothing_is_tried_where_nothing_is_to_choose(options, shells, trials):
    X, y = shells
    assert classifier(**options).fit(X, y).retain_rate_ is None
    assert not trials


def test_streams_take_the_usual_rates(shells, trials):
    X, y = shells
    model = classifier().partial_fit(X, y, classes=[0, 1]).partial_fit(X, y)
    assert model.retain_rate_ == USUAL
    assert not trials


def test_going_on_keeps_the_choice(shells, trials):
    X, y = shells
    model = classifier(warm_start=True).fit(X, y)
    chosen, n_trials = model.retain_rate_, len(trials)
    noise = np.random.default_rng(0).integers(2, size=len(X))
    assert model.fit(X, noise).retain_rate_ == chosen
    assert model.partial_fit(X, noise).retain_rate_ == chosen
    assert len(trials) == n_trials


def test_validation_rows_judge_where_there_are_some(shells, monkeypatch):
    X, y = shells
    seen = []

    def watched(candidates, sites, train, rows, valid, batch_size):
        seen.append((len(rows), len(valid)))
        return choose(candidates, sites, train, rows, valid, batch_size)

    monkeypatch.setattr("sklearn_margdrop.estimators.network.choose", watched)
    classifier(early_stopping=True, max_iter=30).fit(X, y)
    assert seen == [(540, 60)]


def test_an_interrupted_trial_ends_the_fit(shells, monkeypatch):
    X, y = shells
    model = classifier()

    def interrupt(self, rows, valid, epochs, *args):
        self.stop_reason_ = "interrupted"

    monkeypatch.setattr(MarginalizedNet, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert not hasattr(model, "net_")


def test_progress_is_told(shells, capsys):
    X, y = shells
    classifier(verbose=True).fit(X, y)
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("retain_rate (1.0, 1.0); held-out losses of short trainings: (0.95, ")


def test_half_of_everything_is_too_much_for_counts(shells, trials):
    """Whose mean is exponential in what the noise moves."""
    X, _ = shells
    rows = np.random.default_rng(0).poisson(3, size=len(X))
    MarginalizedDropoutRegressor(8, family="poisson", max_iter=60, **SEED).fit(X, rows)
    assert trials == [list(rates) for rates in RETAIN_RATES[:3]]


def test_regressors_choose_too(shells):
    X, _ = shells
    model = MarginalizedDropoutRegressor(32, **SEED).fit(X, np.sin(2 * X).sum(1))
    assert model.retain_rate_ == (1.0, 1.0)
