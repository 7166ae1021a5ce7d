"""The table of timm's backbones: which of them learn, answer, are saved and loaded, forget and are exported.

`benchmarks/timm_backbones.py` wrote the file from which it is made.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pah.core.files import read_json
from pah.study.table import NO_VALUE, markdown_table

STEPS = {  # name in the file: title of the column
    "learns": "two lessons",
    "answers": "answers",
    "saves": "saved and loaded",
    "forgets": "forgets",
    "exports": "exported",
}
WAYS = {"none": "frozen", "all": "trained"}  # value of --backbone.train: word for it


def backbones_table(path: Path) -> str:
    """Return a row for each backbone, ordered by family, what the rows mean, and the reasons for each "no"."""
    measured = read_json(path)
    records = sorted(measured["backbones"], key=lambda record: (record["family"], record["name"]))
    lines = [["timm name", "family", "image size", "features", "million parameters", *STEPS.values()]]
    lines.append(["---", "---", *["---:"] * 3, *["---"] * len(STEPS)])
    for record in records:
        cells = [_cell(record, step) for step in STEPS]
        lines.append([f"`{record['name']}`", record["family"], *_numbers(record), *cells])
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    whole = sum(not _reasons(record) for record in records)
    families = len({record["family"] for record in records})
    legend = (
        f"{len(records)} models of {families} families, of which {whole} do all of it; {versions}. Weights are random, "
        f'a class has {measured["images"]} images, a lesson takes two steps. "Yes" means frozen and trained '
        "(`--backbone.train none` and `all`); the export is tried with the trained one."
    )
    reasons = [f"* `{record['name']}`: {'; '.join(_reasons(record))}" for record in records if _reasons(record)]
    return "\n\n".join([markdown_table(lines), legend, *(["\n".join(reasons)] if reasons else [])])


def _numbers(record: Mapping[str, Any]) -> list[str]:
    """Return the image size, the number of features and of parameters."""
    if "features" not in record:
        return [NO_VALUE] * 3
    return [str(record["image_size"]), str(record["features"]), f"{record['parameters'] / 1e6:.1f}"]


def _cell(record: Mapping[str, Any], step: str) -> str:
    """Return whether a step succeeded: yes, no, or the only way of training with which it did."""
    tried = {way: record.get(way, {}).get(step) for way in WAYS if not (step == "exports" and way == "none")}
    done = [way for way, outcome in tried.items() if outcome == "yes"]
    if len(done) == len(tried):
        return "yes"
    return f"{WAYS[done[0]]} only" if done else "no"


def _reasons(record: Mapping[str, Any]) -> list[str]:
    """Return why steps failed, each reason once."""
    if "why" in record:
        return [record["why"]]
    outcomes = [outcome for way in WAYS for outcome in record.get(way, {}).values() if outcome != "yes"]
    return list(dict.fromkeys([*outcomes, *([record["end"]] if "end" in record else [])]))
