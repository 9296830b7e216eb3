"""The cost of one training step: each method against plain torch, skorch and MLPClassifier.

Run ``python -m benchmarks.speed.step_cost``. A step is what a fit does for each batch: slice it,
compute the objective and its gradient, update the weights by SGD with momentum; what a fit adds is
in fit_cost.py. The plain torch loop slices the same tensors and has torch's default optimiser,
which is not the fused one that ours takes; skorch's own loader makes its batches; MLPClassifier
makes one `partial_fit` of a batch, which validates it first.
"""

import warnings

import torch
from sklearn.neural_network import MLPClassifier

from benchmarks.harness import Results, parser, take_turns
from benchmarks.speed.peers import (
    SGD,
    endless,
    our_net,
    perceptron,
    random_images,
    rows_of,
    skorch_net,
    title,
    torch_step,
)

#: Widths, batch size, and whether the exact "quadratic" is measured, whose cost grows with K.
SHAPES = [
    ((784, 1024, 10), 100, True),
    ((784, 500, 1000, 10), 100, True),
    ((64, 100, 10), 100, True),
    ((784, 1024, 1000), 100, False),
    ((64, 256, 1000), 100, False),
]
DROPOUT, PLAIN = "torch, nn.Dropout", "torch, no dropout"


def torch_peer(rows, sizes, batch_size, device, dropout):
    model = perceptron(sizes, dropout).to(device)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    batches = endless(rows, batch_size)

    def step():
        batch = next(batches)
        torch_step(model, optimizer, batch.x, batch.y)

    return step


def skorch_peer(X, y, sizes, batch_size, device):
    net = skorch_net(sizes, batch_size, 1, device, optimizer__momentum=SGD["momentum"])
    net.set_params(lr=SGD["lr"]).initialize()

    def forever():
        while True:
            yield from net.get_iterator(net.get_dataset(X, y), training=True)

    batches = forever()
    return lambda: net.train_step(next(batches))


def mlp_peer(X, y, sizes, batch_size):
    model = MLPClassifier(
        sizes[1:-1], solver="sgd", learning_rate_init=SGD["lr"], momentum=SGD["momentum"]
    )
    classes = range(sizes[-1])
    starts = iter(range(10**9))

    def step():
        start = next(starts) * batch_size % (len(X) - batch_size)
        rows = slice(start, start + batch_size)
        model.partial_fit(X[rows], y[rows], classes=classes)

    return step


def our_peer(rows, batch_size, *args, **settings):
    net, batches = our_net(*args, **settings), endless(rows, batch_size)
    return lambda: net.train_step(next(batches))


def peers(sizes, batch_size, exact, device):
    X, y = random_images(50 * batch_size, sizes[0], sizes[-1])
    rows = rows_of(X, y, device)
    steps = {
        DROPOUT: torch_peer(rows, sizes, batch_size, device, dropout=True),
        PLAIN: torch_peer(rows, sizes, batch_size, device, dropout=False),
        "skorch, nn.Dropout": skorch_peer(X, y, sizes, batch_size, device),
    }
    methods = {
        "no noise": ("diagonal", {"sites": ()}),
        "sampling": ("sampling", {}),
        "diagonal": ("diagonal", {}),
        "moments": ("moments", {"n_probes": 1}),
        "quadratic, 1 tangent": ("quadratic", {"n_probes": 1}),
    }
    if exact:
        methods["quadratic"] = ("quadratic", {})
    for name, (method, settings) in methods.items():
        steps[name] = our_peer(rows, batch_size, sizes, method, device, **settings)
    if device.type == "cpu":
        steps["MLPClassifier"] = mlp_peer(X, y, sizes, batch_size)
    return steps


def main():
    options = parser(__doc__, "device", "turns", "layers", "batch-size", "steps", "json", "check")
    options.add_argument("--exact", action="store_true", help="with the exact quadratic, too")
    options = options.parse_args()
    warnings.simplefilter("ignore")
    own = [(options.layers, options.batch_size, options.exact)]
    results = Results(options)
    for sizes, batch_size, exact in own if options.layers else SHAPES:
        device = torch.device(options.device)
        steps = peers(sizes, batch_size, exact, device)
        seconds = take_turns(steps, options.turns or 30, options.steps, device)
        results.add(title(sizes, batch_size), seconds, [DROPOUT, PLAIN, "sampling"])
    results.finish()


if __name__ == "__main__":
    main()
