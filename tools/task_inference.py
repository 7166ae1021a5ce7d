"""How well a learner finds the task of an image by itself, and tells what it was never taught.

python tools/task_inference.py RUN --data PATH [--part validation] [--json FILE]

RUN: the folder of a finished `pah run --stream.validation 0.1`; validation images calibrate it, the test images of its
tasks are asked, under every rule. Test images of the data set's classes outside its tasks (`--stream.first 9` leaves a
tenth of CIFAR-100) are what was never taught. What is chosen is chosen with `--part validation`: it asks the validation
images instead, and training images of the classes never taught.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pah.core.config import InputError
from pah.core.files import read_json, read_yaml, write_json
from pah.data.sources import Images
from pah.data.stream import Stream
from pah.learner.learner import ContinualLearner
from pah.learner.predictor import MAX_BATCH, Predictor
from pah.learner.task_inference import DEFAULT_RULE, KNOWN_SCORE, Rule, task_scores
from pah.models.modes import evaluating
from pah.training.config import RunConfig, load_stream
from pah.training.options import Part

OF_HEADS: tuple[Rule, ...] = ("softmax", "energy", "contrast")  # what scores are made of a head's answer alone
ALARM = 0.05  # share of known images that may be taken for unknown ones


def measure(folder: Path, data: str | None, part: Part) -> dict[str, Any]:
    """Accuracies in percent of the run in `folder` on that part of the images, under each rule.

    Raises:
        InputError: the run has no model, kept no validation images, or its data are missing.
    """
    config = RunConfig.from_dict(read_yaml(folder / "config.yaml"))
    config = dataclasses.replace(config, data=data or config.data)
    predictor = ContinualLearner.load(folder / "model").predictor
    if not all(task.quantiles for task in predictor.record.tasks):
        raise InputError(f"{folder}: expected a run with --stream.validation above 0, got one without")
    stream = load_stream(config)
    asked = [task.test if part == "test" else task.validation for task in stream.tasks]
    pixels = torch.cat([of.pixels[of.rows] for of in asked])
    labels = torch.cat([of.labels for of in asked])
    tasks = torch.cat([torch.full_like(of.labels, k) for k, of in enumerate(asked)])
    rules = {rule: _found(predictor, rule, pixels, labels, tasks) for rule in get_args(Rule)}
    given = sum(
        (_answers(predictor, pixels[tasks == k], [k])[1] == labels[tasks == k]).sum().item()
        for k in set(tasks.tolist())
    )
    metrics = read_json(folder / "metrics.json")
    return {
        "run": {key: metrics[key] for key in ("benchmark", "method", "seed", "commit")},
        "part": part,
        "tasks": len(stream.tasks),
        "images": len(labels),
        "task_given_accuracy": 100 * given / len(labels),
        "default": DEFAULT_RULE,
        "rules": rules,
        "unknown": _unknown(predictor, pixels, _never_taught(config, stream, part)),
    }


def _answers(
    predictor: Predictor, pixels: Tensor, among: Sequence[int], rule: Rule = DEFAULT_RULE
) -> tuple[Tensor, Tensor, Tensor]:
    """Task, class within it, and how known the image is: each (N,)."""
    found = list(predictor.predict_batches(pixels, among, rule))
    return tuple(torch.cat([getattr(f, part) for f in found]) for part in ("tasks", "classes", "known_scores"))  # type: ignore[return-value]


def _found(predictor: Predictor, rule: Rule, pixels: Tensor, labels: Tensor, tasks: Tensor) -> dict[str, float]:
    """How often the task is found, and task and class."""
    task, label, _ = _answers(predictor, pixels, range(len(predictor.record.tasks)), rule)
    right = task == tasks
    return {
        "task_accuracy": 100 * right.double().mean().item(),
        "class_accuracy": 100 * (right & (label == labels)).double().mean().item(),
    }


def _never_taught(config: RunConfig, stream: Stream, part: Part) -> Images | None:
    """Images of the tasks that the run left out: for testing, or those that would have been learned from."""
    everything = load_stream(dataclasses.replace(config, stream=dataclasses.replace(config.stream, first=None)))
    rest = everything.tasks[len(stream.tasks) :]
    if not rest:
        return None
    found = [task.test if part == "test" else task.train for task in rest]
    return Images(torch.cat([of.pixels[of.rows] for of in found]), torch.cat([of.labels for of in found]))


def _unknown(predictor: Predictor, known: Tensor, foreign: Images | None) -> dict[str, Any] | None:
    """How well "none of these" tells images of classes never taught from those that were, no task given."""
    if foreign is None:
        return None
    everyone = range(len(predictor.record.tasks))
    scores, refused = [], []
    for pixels in (known, foreign.pixels):
        found = list(predictor.predict_batches(pixels, everyone, DEFAULT_RULE))
        scores.append(torch.cat([f.known_scores for f in found]))
        answers = [answer for f in found for answer in predictor.to_predictions(f, ALARM)]
        refused.append(100 * sum(answer.label is None for answer in answers) / len(answers))
    return {
        "images": len(foreign.labels),
        "classes": len(foreign.labels.unique()),
        "score": KNOWN_SCORE,
        "auroc": _auroc(*scores),
        "auroc_of": {kind: _auroc(*(_best(predictor, x, kind) for x in (known, foreign.pixels))) for kind in OF_HEADS},
        "false_alarm_asked": 100 * ALARM,
        "false_alarm": refused[0],
        "detected": refused[1],
    }


def _best(predictor: Predictor, pixels: Tensor, kind: Rule) -> Tensor:
    """The best score of all tasks, (N,)."""
    tasks = predictor.record.tasks
    kept, found = [task.quantiles for task in tasks], []
    with torch.inference_mode(), evaluating(predictor.method.network):
        for batch in pixels.split(MAX_BATCH):
            logits = predictor.logits(batch, range(len(tasks)))
            found.append(task_scores(kind, logits, None, kept).amax(dim=1))
    return torch.cat(found)


def _auroc(known: Tensor, foreign: Tensor) -> float:
    """How often, in percent, a known image scores higher than a foreign one."""
    truth = torch.cat([torch.ones(len(known)), torch.zeros(len(foreign))])
    return 100 * float(roc_auc_score(truth, torch.cat([known, foreign])))


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run with --stream.validation")
    parser.add_argument("--data", help="where its data lie; where they lay for the run unless given")
    parser.add_argument("--part", choices=get_args(Part), default="test", help="which images are asked")
    parser.add_argument("--json", type=Path, help="file for what was found")
    options = parser.parse_args(words)
    try:
        found = measure(options.run, options.data, options.part)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for rule, of in found["rules"].items():
        print(f"{rule:12} task {of['task_accuracy']:.2f}  class {of['class_accuracy']:.2f}")
    print(f"{'task given':12} class {found['task_given_accuracy']:.2f}  unknown: {found['unknown']}")
    if options.json:
        write_json(options.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
