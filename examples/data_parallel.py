"""
One network on several processes
================================

The processes are started by Hugging Face Accelerate; each runs this script, and takes its part of
every batch. Two processes on CPUs::

    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 data_parallel.py

and two GPUs::

    accelerate launch --multi_gpu --num_processes 2 data_parallel.py

Started by ``python data_parallel.py`` it is an ordinary fit. The weights come out the same, but
for rounding, since ``method="diagonal"`` draws nothing; with the default each process draws signs
for its own rows. (The gallery does not run it.)
"""

# %%
# All processes have the same rows, in the same order, and the same parameters.

from accelerate import Accelerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_margdrop import MarginalizedDropoutClassifier

accelerator = Accelerator()
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, stratify=y, random_state=0)
clf = MarginalizedDropoutClassifier(
    method="diagonal", accelerator=accelerator, batch_size=200, max_iter=30, random_state=0
)
clf.fit(X_train, y_train)

# %%
# All of them hold the fitted model. One prints.

accelerator.print(f"{accelerator.num_processes} process(es), {clf.n_iter_} epochs")
accelerator.print(f"objective {clf.loss_curve_[-1]:.6f} nats per sample")
accelerator.print(f"accuracy on held-out rows {clf.score(X_test, y_test):.3f}")
accelerator.end_training()
