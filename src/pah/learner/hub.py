"""Learners on the Hugging Face hub: the model card, upload and download."""

import html
import json
import re
import tempfile
from pathlib import Path

import huggingface_hub  # it imports its parts when they are used

from pah.core.config import InputError
from pah.core.files import write_file
from pah.core.hub import hub_is_reachable
from pah.data.image import first_line
from pah.learner import store
from pah.learner.measurements import Comparison, compare
from pah.learner.predictor import Predictor
from pah.learner.store import LEARNER_FILE, WEIGHTS_FILE, Record, TaughtTask

CARD = "README.md"


def model_card(record: Record) -> str:
    """Return the hub's model card for a learner: its tasks, classes, accuracies and data."""
    header = huggingface_hub.ModelCardData(
        library_name="pah",
        pipeline_tag="image-classification" if record.numbers is None else "tabular-classification",
        tags=["continual-learning", record.config.method],
    )
    channels, height, width = record.image_shape
    inputs, example, kept = (
        f"{'grey' if channels == 1 else 'colour'} images of {height}x{width}",
        '["photo.jpg"]',
        "images",
    )
    if record.numbers is not None:
        inputs, example, kept = record.inputs, "vectors", "vectors"
    lines = [
        f"---\n{header.to_yaml()}\n---",
        "# Continual learner",
        f"A {record.config.method} learner on {record.config.backbone}, for {inputs}; it learned "
        f"{_learned(len(record.tasks))}, without keeping their {kept}.",
        f"| task | classes | {kept} | data | taught | accuracy then, % | when last measured, % | measured on |\n"
        "|---|---|---:|---|---|---:|---:|---:|\n" + "\n".join(_task_row(task, record) for task in record.tasks),
        f"Accuracies are measured with the task given, on {kept} that were not used for training. The two of a row are "
        f"the first and the last one on the same {kept}, whose number is the last column.",
        "```python\nfrom pah import ContinualLearner\n\n"
        'learner = ContinualLearner.from_pretrained("OWNER/NAME")\n'
        f"learner.predict({example}, task={json.dumps(record.tasks[0].name, ensure_ascii=False)})\n```",
    ]
    return "\n\n".join(lines) + "\n"


def _learned(tasks: int) -> str:
    """Return in words how many tasks were learned."""
    return "one task" if tasks == 1 else f"{tasks} tasks one after another"


def _task_row(task: TaughtTask, record: Record) -> str:
    """Return a task's row of the table in the model card."""
    accuracy = compare(record.history, task.name) or Comparison(None, None, None)
    classes = ", ".join(map(escaped, task.classes))
    words = [escaped(task.name), classes, _or_dash(task.images), escaped(_or_dash(task.data)), _or_dash(task.taught)]
    numbers = [_percent(accuracy.then), _percent(accuracy.last), _or_dash(accuracy.images)]
    return f"| {' | '.join([*words, *numbers])} |"


def escaped(text: str) -> str:
    """Return a name as Markdown that shows it as it is, in one line and in one cell of a table."""
    text = " ".join(text.split())
    text = html.escape(text, quote=False).replace("|", "&#124;")
    return re.sub(r"[\\`*\[\]~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def write_learner(folder: Path, predictor: Predictor) -> None:
    """Write the learner's files and its model card into a folder."""
    statistics = predictor.statistics.to_tensors() if predictor.statistics else None
    store.save(folder, predictor.record, predictor.method.network, statistics)
    write_file(folder / CARD, model_card(predictor.record).encode())


def refuse_to_replace(folder: Path) -> None:
    """Raise InputError if saving a learner in the folder would replace files that do not belong to a learner."""
    for name in (WEIGHTS_FILE, CARD):
        if (folder / name).exists() and not (folder / LEARNER_FILE).is_file():
            raise InputError(
                f"{folder}: expected a learner or a folder without {name}, got one that would lose its own"
            )


def upload(predictor: Predictor, repo_id: str, private: bool) -> str:
    """Upload a learner to the hub and return its address.

    Raises:
        InputError: the hub cannot be reached, or refuses the upload.
    """
    if not hub_is_reachable():
        raise InputError(f"{repo_id}: expected a hub that answers, got none; save() writes a folder instead")
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write_learner(Path(folder), predictor)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Learner")
    except Exception as error:  # the hub's client raises many types of exceptions
        raise InputError(f"{repo_id}: expected a hub that accepts the upload, got: {first_line(error)}") from error
    return str(address)


def download(repo_id: str, revision: str | None) -> Path:
    """Download a learner from the hub into the hub's cache, and return its folder.

    Raises:
        InputError: neither the hub nor the cache has this learner.
    """
    try:
        offline = not hub_is_reachable()
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=[WEIGHTS_FILE, LEARNER_FILE], local_files_only=offline
        )
    except Exception as error:  # as in `upload`
        raise InputError(
            f"{repo_id}: expected a learner's folder or one on the hub, got: {first_line(error)}"
        ) from error
    return Path(folder)


def _or_dash(value: object) -> str:
    """Return the value as text; a dash for None."""
    return "–" if value is None else str(value)


def _percent(value: float | None) -> str:
    """Return a percentage with one decimal; a dash for None."""
    return "–" if value is None else f"{value:.1f}"
