"""The tables of what pretrained weights do with few images, made from results/pretrained/."""

from pathlib import Path

from pah.core.files import read_json
from pah.study.table import format_mean_std, markdown_table

METHODS = {"pah": "PAH", "finetune": "a linear head for each task (`finetune`)"}
STARTS = {"scratch": "from scratch (`--backbone resnet18-slim`)", "pretrained": "from ImageNet weights (the default)"}
LESSONS = {"animals": "3 classes", "insects": "then 2 classes", "ten": "10 classes"}


def few_images_table(path: Path) -> str:
    """Return the accuracy for each number of images a class, and the forgetting of PAH."""
    runs = read_json(path)["runs"]
    lines = [["images a class", *METHODS.values(), "forgetting of PAH, points", "PAH, task not given"]]
    lines.append(["---:"] * len(lines[0]))
    for images in dict.fromkeys(run["images"] for run in runs):

        def cell(method: str, figure: str, images: int = images) -> str:
            return format_mean_std([run[figure] for run in runs if (run["images"], run["method"]) == (images, method)])

        accuracies = [cell(method, "average_accuracy") for method in METHODS]
        others = [cell("pah", figure) for figure in ("forgetting", "class_incremental_accuracy")]
        lines.append([str(images), *accuracies, *others])
    seeds = len({run["seed"] for run in runs})
    return (
        f"{markdown_table(lines)}\n\nPercent of the test images after ten lessons of ten classes, task given: mean ± "
        f"standard deviation over {seeds} seeds, which also choose the images. "
        "Made by `python benchmarks/few_images.py`."
    )


def photo_lessons_table(path: Path) -> str:
    """Return seconds and accuracy of lessons of photos, from scratch and from pretrained weights."""
    measured = read_json(path)
    lines = [["start", *(f"{text}: seconds / accuracy, %" for text in LESSONS.values())]]
    lines.append(["---", *["---:"] * len(LESSONS)])
    for start, text in STARTS.items():
        seconds, accuracy = measured[start]["seconds"], measured[start]["accuracy"]
        lines.append([text, *(f"{seconds[lesson]:.0f} / {accuracy[lesson]:.0f}" for lesson in LESSONS)])
    width, height = measured["size"]
    return (
        f"{markdown_table(lines)}\n\n{measured['photos']} JPEG photos of {width}x{height} a class (enlarged images of "
        f"CIFAR-100), one seed; accuracy on 100 test images a class, task given, after both lessons. Seconds from the "
        f"command to the saved learner on {measured['threads']} cores. Made by `python benchmarks/photo_lessons.py`."
    )
