"""The defaults of a new learner, as they follow from the options of its first lesson."""

from collections.abc import Mapping
from typing import Any

from pah.data.vector_files import is_npz
from pah.learner.defaults import default_backbone, defaults
from pah.training.config import RunConfig


def are_vectors(values: Mapping[str, Any]) -> bool:
    """Return whether the options by full name choose the backbone of vectors, or none with data that are vectors."""
    has_vectors = bool(values.get("column")) or is_npz(values.get("data"))
    return str(values.get("backbone.name", "features" if has_vectors else "")) == "features"


def learner_defaults(values: Mapping[str, Any], vectors: bool) -> RunConfig:
    """Return the defaults of a new learner with these options by full name; the parser refuses invalid ones later."""
    text = str(values.get("image_size", ""))
    size = int(text) if text.isdecimal() and 1 <= int(text) <= 1024 else None
    name = values.get("backbone.name", "features" if vectors else None)
    given = {key.removeprefix("backbone."): value for key, value in values.items() if key.startswith("backbone.")}
    given.pop("name", None)
    if "pretrained" in given:
        given["pretrained"] = str(given["pretrained"]).lower() not in ("false", "no", "off", "0")
    deciding = {key: value for key, value in given.items() if key in ("pretrained", "weights", "train")}
    name = name if isinstance(name, str) else default_backbone(size, given)
    return defaults(size, name, deciding)
