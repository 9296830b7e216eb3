"""What is public of inspection, where matplotlib is missing."""

import subprocess
import sys


def test_displays_say_that_matplotlib_is_missing():
    code = """
import sys
sys.modules["matplotlib"] = None
from sklearn_margdrop.inspection import *
from sklearn_margdrop import MarginalizedDropoutGLMClassifier
X, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
model = MarginalizedDropoutGLMClassifier(retain_rate=0.9).fit(X, y)
print(penalty_per_sample(model, X).shape)
for draw in (
    lambda: TrainingCurveDisplay.from_estimator(model),
    lambda: RegularizationPathDisplay.from_estimator(model, X, y),
    lambda: FisherScalingDisplay.from_estimator(model),
    lambda: FisherScalingDisplay.from_predictions(X, model.predict_proba(X)[:, 1], model.coef_[0]),
    lambda: TrainingCurveDisplay(objective=[1]).plot(),
):
    try:
        draw()
    except ImportError as error:
        print("requires matplotlib" in str(error))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split("\n")[:-1] == ["(4,)"] + ["True"] * 5, run.stderr
