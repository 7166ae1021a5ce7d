"""The tables of measurements that are not runs: speed, finding the task, three lessons, small lessons.

Each function reads one file under results/. The program that wrote the file is named in the table's legend or in
results/README.md.
"""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pah.core.files import read_json
from pah.study.table import NO_VALUE, markdown_table

SMALL_METHODS = ("pah", "lwf", "finetune", "independent", "joint")  # columns of the table of small lessons


def step_table(path: Path) -> str:
    """Return the duration of a step as a Markdown table with a row for each number of learned tasks."""
    cost = read_json(path)
    titles = ["tasks learned", "finetune, ms", "PAH, ms", "PAH, a pass per old head, ms", "PAH / finetune"]
    lines = [[*titles, "per head / PAH"], ["---:"] * 6]
    for row in cost["rows"]:
        finetune, pah, per_head = row["finetune_ms"], row["pah_ms"], row["per_head_ms"]
        milliseconds = (f"{ms:.0f}" for ms in (finetune, pah, per_head))
        lines.append([str(row["tasks"]), *milliseconds, f"{pah / finetune:.2f}", f"{per_head / pah:.1f}"])
    side = cost["image"]
    legend = (
        f"Median of {cost['repeats']} steps in one process, the forms taking turns: {cost['backbone']}, batch size "
        f"{cost['batch']}, images of {side}x{side}, tasks of {cost['classes']} classes, {cost['threads']} threads, "
        f"torch {cost['torch']}."
    )
    return markdown_table(lines) + f"\n\n{legend}"


def step_ratio_table(results: Path) -> str:
    """Return how many times a step of finetuning one of PAH takes, a row for each `step-cost*.json`.

    Columns are the numbers of learned tasks that all files have.
    """
    costs = [read_json(path) for path in sorted(results.glob("step-cost*.json"))]
    costs.sort(key=lambda cost: (cost["backbone"] != "resnet18-slim", cost["backbone"], cost["batch"]))
    ratios = [{row["tasks"]: row["pah_ms"] / row["finetune_ms"] for row in cost["rows"]} for cost in costs]
    tasks = [number for number in ratios[0] if all(number in ratio for ratio in ratios)]
    lines = [["backbone", "batch size", *(f"after {number} tasks" for number in tasks)]]
    lines.append(["---", *["---:"] * (1 + len(tasks))])
    for cost, ratio in zip(costs, ratios, strict=True):
        lines.append([f"`{cost['backbone']}`", str(cost["batch"]), *(f"{ratio[number]:.2f}" for number in tasks)])
    return markdown_table(lines)


def avalanche_table(path: Path) -> str:
    """Return the seconds of an epoch here and in Avalanche as a Markdown table with a row for each method."""
    measured = read_json(path)
    lines = [["seconds an epoch", "`pah`", "Avalanche, 0 workers", "Avalanche, 2 workers", "times faster"]]
    lines.append(["---", *["---:"] * 4])
    for method, seconds in measured["seconds_an_epoch"].items():
        ours, *theirs = (seconds[key] for key in ("pah", "avalanche, 0 workers", "avalanche, 2 workers"))
        lines.append([f"`{method}`", *(f"{each:.2f}" for each in (ours, *theirs)), f"{min(theirs) / ours:.2f}"])
    legend = (
        f"The first {measured['tasks']} tasks of Split-CIFAR100, the first of which does not count; slim ResNet-18 of "
        f"width {measured['width']}, batch size {measured['batch']}, float32, {measured['threads']} threads, torch "
        f'{measured["torch"]}. "Times faster" compares with the faster of the two settings of Avalanche.'
    )
    return markdown_table(lines) + f"\n\n{legend}"


def inference_table(path: Path) -> str:
    """Return how well each rule finds the task as a Markdown table, and how well unknown classes are recognised."""
    measured = read_json(path)
    chance, unknown = 100 / measured["tasks"], measured["unknown"]
    lines = [["rule", "task found, %", "class right, %"], ["---", "---:", "---:"]]
    for rule, accuracies in measured["rules"].items():
        name = f"`{rule}`" + (" (default)" if rule == measured["default"] else "")
        lines.append([name, f"{accuracies['task_accuracy']:.1f}", f"{accuracies['class_accuracy']:.1f}"])
    lines.append(["by chance", f"{chance:.1f}", f"{measured['task_given_accuracy'] * chance / 100:.1f}"])
    lines.append(["task given", NO_VALUE, f"{measured['task_given_accuracy']:.1f}"])
    legend = (
        f"Recipe `fast` with a tenth of the training images held out, the first {measured['tasks']} tasks of "
        f"Split-CIFAR100, seed {measured['run']['seed']}, {measured['images']:,} test images. `unknown=True` separates "
        f"these from {unknown['images']:,} images of {unknown['classes']} classes that were never taught, with an "
        f"AUROC of {unknown['auroc']:.1f} %. When it may reject {unknown['false_alarm_asked']:.0f} % of the images of "
        f"known classes, it rejects {unknown['false_alarm']:.1f} % of them and {unknown['detected']:.1f} % of the "
        "images of unknown classes."
    )
    return markdown_table(lines) + f"\n\n{legend}"


def three_lessons_table(path: Path) -> str:
    """Return the accuracy on each of three lessons after each of them, as a Markdown table."""
    measured = read_json(path)
    stages = {stage: accuracies for stage, accuracies in measured.items() if stage.startswith("after ")}
    lines = [["lesson", "classes", *stages], ["---", "---:", *["---:"] * len(stages)]]
    for lesson, classes in measured["classes"].items():
        cells = [
            f"{accuracies[lesson]['task given']:.1f} / {accuracies[lesson]['task inferred']:.1f}"
            if lesson in accuracies
            else ""
            for accuracies in stages.values()
        ]
        lines.append([lesson, str(classes), *cells])
    speed, head_bytes = measured["images a second"], measured["bytes of a stored head"]
    sizes = ", ".join(
        f"{size:,} of {lesson} (a stored head: {head_bytes[lesson]:,})"
        for lesson, size in measured["bytes of prototypes a task"].items()
    )
    legend = (
        f"Test accuracy in percent, task given / not given; {measured['epochs']} epochs a lesson, one seed, made by "
        f"`python examples/three_lessons.py`. Bytes of prototypes: {sizes}. The saved weights take "
        f"{measured['bytes of the saved learner'] / 1e6:.1f} MB. `predict` answers {speed['predict']:.0f} images of "
        f"64x64 a second, {100 * speed['predict'] / speed['backbone']:.0f} % of the speed of the bare backbone."
    )
    return markdown_table(lines) + f"\n\n{legend}"


def small_summary_row(path: Path) -> list[str]:
    """Return the README's row on small lessons: the experiment, seeds, AA, FM and one sentence."""
    table = read_json(path)
    methods = table["all"]
    others = {"lwf": "LwF", "finetune": "finetuning", "independent": "a separate network for each lesson"}
    reached = ", ".join(
        f"{words} {methods[name]['average_accuracy']:.1f}" for name, words in others.items() if name in methods
    )
    return [
        f"{len(table['streams'])} streams of small lessons",
        str(fewest_seeds(table, "pah")),
        *(f"{methods['pah'][key]:.1f}" for key in ("average_accuracy", "forgetting")),
        f"This is the mean over streams that resemble one's own photos; others reach: {reached}.",
    ]


def small_lessons_table(path: Path) -> str:
    """Return AA and FM on small lessons as a Markdown table with a row for each stream, and the main findings."""
    table = read_json(path)
    titles = ["stream", "settings", *(f"{name}, AA / FM" for name in SMALL_METHODS), "LwF minus PAH [95 % interval]"]
    lines = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for name, stream in table["streams"].items():
        methods = stream["methods"]
        difference = methods["lwf"]["minus_pah"]
        interval = f"{difference['difference']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"
        lines.append([f"`{name}`", stream["half"], *_accuracy_and_forgetting(methods), interval])
    lines.append(["**mean of all**", "", *_accuracy_and_forgetting(table["all"]), ""])
    seeds = ", ".join(f"{fewest_seeds(table, name)} {name}" for name in SMALL_METHODS if name in table["all"])
    legend = (
        f"Percent, task given, test images; means over seeds (n = {seeds}), made by `python "
        'benchmarks/small_lessons.py` and `pah compare`. Streams marked "chosen on" were used, with their validation '
        'images, to choose settings; those marked "reported" were not. "LwF minus PAH" is taken over the seeds that '
        "both have."
    )
    return f"{markdown_table(lines)}\n\n{legend}\n\n{small_findings(table)}"


def fewest_seeds(table: Mapping[str, Any], method: str) -> int:
    """Return the number of seeds of a method on the stream that has the fewest."""
    return min(int(entry["n"]) for entry in _entries(table, method))


def _entries(table: Mapping[str, Any], method: str) -> Iterator[Mapping[str, Any]]:
    """Yield a method's entry on each stream that has one."""
    yield from (stream["methods"][method] for stream in table["streams"].values() if method in stream["methods"])


def small_findings(table: Mapping[str, Any]) -> str:
    """Return what the table of small lessons shows, as a list of sentences made from its numbers."""
    streams = table["streams"]
    forgetting = {name: stream["methods"]["pah"]["forgetting"] for name, stream in streams.items()}
    worst = sorted(forgetting, key=lambda name: -forgetting[name])[:2]
    most = " and ".join(f"`{name}` ({forgetting[name]:.1f} points)" for name in worst)
    others = [points for name, points in forgetting.items() if name not in worst]
    rest = (
        f", and {statistics.fmean(others):.1f} points on average on the other {len(others)} streams" if others else ""
    )
    intervals = [entry["minus_pah"] for entry in _entries(table, "lwf")]
    ahead = sum(interval["low"] > 0 for interval in intervals)
    behind = sum(interval["high"] < 0 for interval in intervals)
    lines = [
        f"* PAH forgets most on {most}{rest}.",
        f"* LwF is significantly more accurate than PAH on {ahead} of the {len(intervals)} streams and significantly "
        f"less accurate on {behind}.",
    ]
    reported = [stream["methods"] for stream in streams.values() if stream["half"] == "reported"]
    if reported:
        pah, lwf = (_mean_accuracy_and_forgetting(reported, method) for method in ("pah", "lwf"))
        lines.append(
            f"* On the streams that were not used to choose settings, AA / FM is {pah} for PAH and {lwf} for LwF."
        )
    return "\n".join(lines)


def _mean_accuracy_and_forgetting(streams: list[Mapping[str, Any]], method: str) -> str:
    """Return AA / FM of a method, averaged over streams."""
    keys = ("average_accuracy", "forgetting")
    return " / ".join(f"{statistics.fmean(stream[method][key] for stream in streams):.1f}" for key in keys)


def estimate_table(path: Path) -> str:
    """Return how often a learner's estimate of a lesson's cost was right, with a row for each method."""
    judged = read_json(path)
    titles = ["lessons of", "lessons", "cost an old task over 10 points", "of these flagged", "others flagged"]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)]]
    for name in (*(name for name in SMALL_METHODS if name in judged), "all"):
        counts = judged[name]["lessons"]
        shares = (
            NO_VALUE if judged[name][key] is None else f"{100 * judged[name][key]:.0f} %"
            for key in ("flagged", "false_alarms")
        )
        lines.append([name, str(counts["all"]), str(counts["lost"]), *shares])
    legend = (
        "A lesson is flagged when `drift`, the estimate made without old images, is over 10 points. Seeds 0 to 2. The "
        f"correlation of estimated and measured cost is {judged['all']['correlation']:.2f}."
    )
    return f"{markdown_table(lines)}\n\n{legend}"


def _accuracy_and_forgetting(methods: Mapping[str, Any]) -> list[str]:
    """Return AA / FM of each of `SMALL_METHODS`, with a dash for a missing one."""
    entries = (methods.get(name) for name in SMALL_METHODS)
    return [f"{entry['average_accuracy']:.1f} / {entry['forgetting']:.1f}" if entry else NO_VALUE for entry in entries]
