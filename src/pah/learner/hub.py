"""A learner on the Hugging Face hub: its model card, and the way there and back."""

import tempfile
from pathlib import Path

import huggingface_hub  # whose parts are imported when they are asked for

from pah.core.config import InputError
from pah.core.files import write_file
from pah.core.hub import hub_answers
from pah.data.image import first_line
from pah.learner import store
from pah.learner.predictor import Predictor
from pah.learner.store import LEARNER, WEIGHTS, Record

CARD = "README.md"


def model_card(record: Record) -> str:
    """What a learner is, knows and was taught from, as a model card of the hub."""
    data = huggingface_hub.ModelCardData(
        library_name="pah",
        pipeline_tag="image-classification",
        tags=["continual-learning", record.config.method],
    )
    last = {name: accuracy for lesson in record.history for name, accuracy in lesson.accuracies.items()}
    first = {name: accuracy for lesson in reversed(record.history) for name, accuracy in lesson.accuracies.items()}
    channels, height, width = record.image_shape
    lines = [
        f"---\n{data.to_yaml()}\n---",
        "# Continual learner",
        f"A {record.config.method} learner on {record.config.backbone}, for {'grey' if channels == 1 else 'colour'} "
        f"images of {height}x{width}; it learned {len(record.tasks)} tasks one after another, without keeping their "
        "images.",
        "| task | classes | images | data | taught | accuracy then, % | when last measured, % |\n"
        "|---|---|---:|---|---|---:|---:|\n"
        + "\n".join(
            f"| {task.name} | {', '.join(task.classes)} | {_or_dash(task.images)} | {_or_dash(task.data)} | "
            f"{_or_dash(task.taught)} | {_percent(first.get(task.name))} | {_percent(last.get(task.name))} |"
            for task in record.tasks
        ),
        "Accuracies are measured with the task given, on images of its data set that it was not taught.",
        "```python\nfrom pah import ContinualLearner\n\n"
        'learner = ContinualLearner.from_pretrained("OWNER/NAME")\n'
        f'learner.predict(["photo.jpg"], task="{record.tasks[0].name}")\n```',
    ]
    return "\n\n".join(lines) + "\n"


def write_whole(folder: Path, taught: Predictor) -> None:
    """The learner's files and its model card."""
    statistics = taught.statistics.tensors() if taught.statistics else None
    store.save(folder, taught.record, taught.method.network, statistics)
    write_file(folder / CARD, model_card(taught.record).encode())


def refuse_to_replace(folder: Path) -> None:
    """Raise InputError if a new learner in `folder` would replace a file that is no learner's."""
    for name in (WEIGHTS, CARD):
        if (folder / name).exists() and not (folder / LEARNER).is_file():
            raise InputError(
                f"{folder}: expected a learner or a folder without {name}, got one that would lose its own"
            )


def upload(taught: Predictor, repo_id: str, private: bool) -> str:
    """Put a learner on the hub; returns its address.

    Raises:
        InputError: the hub cannot be reached, or refuses.
    """
    if not hub_answers():
        raise InputError(f"{repo_id}: expected a hub that answers, got none; save() writes a folder instead")
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            write_whole(Path(folder), taught)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Learner")
    except Exception as error:  # the hub's client raises what it likes
        raise InputError(f"{repo_id}: expected a hub that takes it, got: {first_line(error)}") from error
    return str(address)


def download(repo_id: str, revision: str | None) -> Path:
    """The folder of a learner on the hub, in the hub's cache.

    Raises:
        InputError: there is none, or neither hub nor cache has it.
    """
    try:
        local = not hub_answers()
        found = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=[WEIGHTS, LEARNER], local_files_only=local
        )
    except Exception as error:  # as above
        raise InputError(
            f"{repo_id}: expected a learner's folder or one on the hub, got: {first_line(error)}"
        ) from error
    return Path(found)


def _or_dash(value: object) -> str:
    return "–" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
