"""Charts of training: the loss terms, and the time, speed and memory of each task."""

from collections.abc import Sequence
from itertools import groupby

from pah.report.charts import HEIGHT, WIDTH, CellValue, Chart, Table, line_style, new_figure, set_task_ticks
from pah.report.figures import GREY
from pah.report.run_data import Epoch, Run

MAX_ROWS = 600  # of a table of epochs
MAX_MARKED = 60  # epochs, up to which each has a marker


def losses(run: Run) -> Chart:
    """Return each loss term over the epochs of all tasks."""
    log = run.log
    terms = list(dict.fromkeys(name for epoch in log for name in epoch.terms))
    task_starts = [i for i, epoch in enumerate(log) if epoch.epoch == 0]
    with new_figure(WIDTH, 0.7 + 1.2 * len(terms), rows=len(terms), sharex=True) as (figure, panels):
        for index, (axes, name) in enumerate(zip(panels, terms, strict=True)):
            epochs = [i + 1 for i, epoch in enumerate(log) if name in epoch.terms]
            values = [epoch.terms[name] for epoch in log if name in epoch.terms]
            marker = "." if len(log) <= MAX_MARKED else ""
            axes.plot(epochs, values, marker=marker, linewidth=1.2, color=line_style(index)["color"])
            axes.set_ylabel(name)
            axes.set_ylim(min(0.0, *values), 1.1 * max(0.0, *values) or 1.0)
            axes.grid(visible=False, axis="x")
            for start in task_starts[1:]:
                axes.axvline(start + 0.5, color=GREY, linewidth=0.6, linestyle=":")
        panels[-1].set_xlabel("epoch; a dotted line marks the start of a task")
    last = ", ".join(f"{name} {value:.3g}" for name, value in log[-1].terms.items())
    words = f"A panel for each loss term, {', '.join(terms)}, over {len(log)} epochs of all tasks. "
    words += f"In the last epoch: {last}."
    return Chart("losses", "Loss terms", words, figure, _epochs_table(log, terms))


def _epochs_table(log: Sequence[Epoch], terms: Sequence[str]) -> Table:
    """Return a table with a row per epoch; of very many epochs, every n-th one and the last."""
    step = -(-len(log) // MAX_ROWS)
    rows: list[list[CellValue]] = [
        [str(epoch.task + 1), str(epoch.epoch + 1), *(epoch.terms.get(name) for name in terms)]
        for epoch in log[::-step][::-1]
    ]
    every = "" if step == 1 else f", every {step}th epoch"
    return Table(f"Mean of each term over an epoch{every}", ["task", "epoch", *terms], rows, digits=4)


def effort(run: Run) -> Chart:
    """Return duration and speed of each task's training, and the peak memory up to its end."""
    tasks = [_task_effort(list(epochs)) for _, epochs in groupby(run.log, key=lambda epoch: epoch.task)]
    has_memory = all(memory is not None for *_, memory in tasks)
    labels = ["seconds", "images a second", *(["peak memory so far, MB"] if has_memory else [])]
    with new_figure(WIDTH, HEIGHT + 0.6, rows=len(labels), sharex=True) as (figure, panels):
        for index, (axes, label) in enumerate(zip(panels, labels, strict=True)):
            values = [task[index] or 0 for task in tasks]
            axes.bar(range(1, len(tasks) + 1), values, color=line_style(index)["color"])
            axes.set_title(label, loc="left")
            axes.grid(visible=False, axis="x")
        panels[-1].set_xlabel("task")
        set_task_ticks(panels[-1].xaxis, len(tasks))
    total = sum(seconds for seconds, *_ in tasks)
    words = f"Bars for each task. All training steps together took {total:.0f} seconds"
    words += f"; the peak memory of the process was {tasks[-1][2]:.0f} MB." if has_memory else "."
    rows: list[list[CellValue]] = [[str(k + 1), *task[: len(labels)]] for k, task in enumerate(tasks)]
    table = Table("Training alone, without evaluation; memory of the whole process", ["task", *labels], rows)
    return Chart("effort", "Time, speed and memory", words, figure, table)


def _task_effort(epochs: Sequence[Epoch]) -> tuple[float, float, float | None]:
    """Return a task's seconds, images a second, and the peak memory at its end in MB."""
    seconds = sum(epoch.seconds for epoch in epochs)
    images = sum(epoch.seconds * epoch.images_per_second for epoch in epochs)
    return seconds, images / seconds if seconds else 0.0, epochs[-1].peak_memory_mb
