"""Figures of training itself: the loss terms, and the time, speed and memory of each task."""

from collections.abc import Sequence
from itertools import groupby

from pah.report.exhibit import HEIGHT, WIDTH, Cell, Exhibit, Table, count_tasks, drawing, line_style
from pah.report.figures import GREY
from pah.report.rundata import Epoch, Run

SHOWN = 600  # rows of a table of epochs, at most


def losses(run: Run) -> Exhibit:
    """Each loss term over the epochs of all tasks."""
    log = run.log
    terms = list(dict.fromkeys(name for epoch in log for name in epoch.terms))
    starts = [i for i, epoch in enumerate(log) if epoch.epoch == 0]
    with drawing(WIDTH, 0.7 + 1.2 * len(terms), rows=len(terms), sharex=True) as (figure, panels):
        for index, (axes, name) in enumerate(zip(panels, terms, strict=True)):
            at = [i + 1 for i, epoch in enumerate(log) if name in epoch.terms]
            values = [epoch.terms[name] for epoch in log if name in epoch.terms]
            axes.plot(at, values, marker="." if len(log) <= 60 else "", linewidth=1.2, color=line_style(index)["color"])
            axes.set_ylabel(name)
            axes.set_ylim(min(0.0, *values), 1.1 * max(0.0, *values) or 1.0)
            axes.grid(visible=False, axis="x")
            for start in starts[1:]:
                axes.axvline(start + 0.5, color=GREY, linewidth=0.6, linestyle=":")
        panels[-1].set_xlabel("epoch; a dotted line where a task begins")
    last = ", ".join(f"{name} {value:.3g}" for name, value in log[-1].terms.items())
    words = f"A panel for each loss term, {', '.join(terms)}, over {len(log)} epochs of all tasks. In the last: {last}."
    return Exhibit("losses", "Loss terms", words, figure, _epochs_table(log, terms))


def _epochs_table(log: Sequence[Epoch], terms: Sequence[str]) -> Table:
    """A row an epoch; of very many epochs, evenly chosen ones and the last."""
    step = -(-len(log) // SHOWN)
    rows: list[list[Cell]] = [
        [str(of.task + 1), str(of.epoch + 1), *(of.terms.get(name) for name in terms)] for of in log[::-step][::-1]
    ]
    every = "" if step == 1 else f", every {step}th epoch"
    return Table(f"Mean of each term over an epoch{every}", ["task", "epoch", *terms], rows, digits=4)


def effort(run: Run) -> Exhibit:
    """Seconds and speed of each task's training, and the most memory held up to its end."""
    tasks = [_of_task(list(epochs)) for _, epochs in groupby(run.log, key=lambda epoch: epoch.task)]
    measured = all(memory is not None for *_, memory in tasks)
    labels = ["seconds", "images a second", *(["peak memory so far, MB"] if measured else [])]
    with drawing(WIDTH, HEIGHT + 0.6, rows=len(labels), sharex=True) as (figure, panels):
        for index, (axes, label) in enumerate(zip(panels, labels, strict=True)):
            axes.bar(range(1, len(tasks) + 1), [of[index] or 0 for of in tasks], color=line_style(index)["color"])
            axes.set_title(label, loc="left")
            axes.grid(visible=False, axis="x")
        panels[-1].set_xlabel("task")
        count_tasks(panels[-1].xaxis, len(tasks))
    total = sum(seconds for seconds, *_ in tasks)
    words = f"Bars for each task. All training steps together took {total:.0f} seconds"
    words += f"; the process held {tasks[-1][2]:.0f} MB at most." if measured else "."
    rows: list[list[Cell]] = [[str(k + 1), *of[: len(labels)]] for k, of in enumerate(tasks)]
    table = Table("Training alone, without evaluation; memory of the whole process", ["task", *labels], rows)
    return Exhibit("effort", "Time, speed and memory", words, figure, table)


def _of_task(epochs: Sequence[Epoch]) -> tuple[float, float, float | None]:
    """A task's seconds, images a second, and the peak memory at its end."""
    seconds = sum(epoch.seconds for epoch in epochs)
    images = sum(epoch.seconds * epoch.images_per_second for epoch in epochs)
    return seconds, images / seconds if seconds else 0.0, epochs[-1].peak_memory_mb
