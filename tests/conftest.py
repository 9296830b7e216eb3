"""Settings that all tests share."""

import torch

# It registers what other tests are not to see; `test_extending.py` imports it.
collect_ignore = ["extensions.py"]

# The tests' tensors are tiny, and threads that wait for each other cost far more than they
# save, above all when pytest-xdist runs a worker on each core.
torch.set_num_threads(1)
