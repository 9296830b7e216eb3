"""Long tables, one stored cell at a time, so that a run that was killed goes on where it was.

A cell is a configuration, a dict of what JSON knows, and what was measured with it. The cells of
a table lie in one file, a line each, in the order in which they were finished.
"""

import json
import os
import time
import warnings
from pathlib import Path

from benchmarks import harness

RESULTS = Path(__file__).parent / "results"


class Cells:
    """The finished cells of one file.

    Parameters
    ----------
    path : Path
        Made when the first cell is finished. A last line that was cut short is ignored.
    device : str, default="cpu"
        Named in the records of the cells that are measured now.
    """

    def __init__(self, path, device="cpu"):
        self.path = Path(path)
        self.device = device
        self.records = {}
        self.read()

    def read(self):
        """Read what is stored now; another process may have added to it."""
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            self.records[_key(record["cell"])] = record

    def missing(self, cells):
        """Those of `cells` that are not finished, without repetitions."""
        distinct = {_key(cell): cell for cell in cells}
        return [cell for key, cell in distinct.items() if key not in self.records]

    def measure(self, cells, function):
        """Call ``function(cell)`` for those that are not finished, and store what it returns."""
        environment = harness.environment(self.device)
        missing = self.missing(cells)
        print(f"{len(missing)} of {len(cells)} cells to do, stored in {self.path}", flush=True)
        begin = time.perf_counter()
        for done, cell in enumerate(missing, 1):
            self.read()
            if not self.missing([cell]):
                continue
            print(f"\n[{done}/{len(missing)}] {_words(cell)}", flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of fits that end at their last epoch, above all
                # An interrupted fit keeps what it has, which is no result.
                warnings.filterwarnings("error", "Training was interrupted")
                result = function(cell)
            self._add({"cell": cell, "result": result, "environment": environment})
            spent = time.perf_counter() - begin
            left = spent / done * (len(missing) - done)
            print(f"  {_duration(spent)} spent, about {_duration(left)} left", flush=True)

    def _add(self, record):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            line = json.dumps(record).encode() + b"\n"
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # after a line that was cut short
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.records[_key(record["cell"])] = record

    def environments(self):
        """The machines and versions that the cells were measured on, one line each."""
        records = self.records.values()
        return list(dict.fromkeys(_words(record["environment"]) for record in records))


def options(doc, name):
    """The options that the tables have, for results that are called `name`."""
    parser = harness.parser(doc, "device", "quick", name=name)
    parser.add_argument("--report", action="store_true", help="print what is stored and stop")
    parser.add_argument("--results", type=Path, help="the file of the cells")
    return parser


def main(parser, run, tables):
    """Measure what is missing, unless only a report is wanted, and print the tables.

    ``run(stored, arguments)`` measures, and ``tables(stored)`` yields what :func:`markdown` takes.
    Returns the cells and the arguments.
    """
    arguments = parser.parse_args()
    kind = arguments.device.split(":")[0] + ("_quick" if arguments.quick else "")
    path = arguments.results or RESULTS / f"{arguments.name}_{kind}.jsonl"
    stored = Cells(path, arguments.device)
    if not arguments.report:
        run(stored, arguments)
    if arguments.quick:
        print("A QUICK RUN, which shows that everything works and says nothing about accuracy.\n")
    for table in tables(stored):
        print(markdown(*table))
    print("\n".join(stored.environments()))
    return stored, arguments


def markdown(title, head, rows, notes=()):
    """A table as Markdown, with a title before and notes after it."""
    lines = [f"### {title}", "", *_pipes([head, ["---"] * len(head), *rows]), ""]
    return "\n".join([*lines, *(f"{note}\n" for note in notes)])


def restructured(title, head, rows, notes=()):
    """The same as reStructuredText."""
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [f"   {'  -' if k else '* -'} {cell}" for k, cell in enumerate(row)]
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes)])


def _pipes(rows):
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _key(cell):
    return json.dumps(cell, sort_keys=True)


def _words(cell):
    return ", ".join(f"{name} {value}" for name, value in cell.items())


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
