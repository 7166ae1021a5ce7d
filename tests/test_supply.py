"""What pah needs of others: nothing is pinned for users, and everything for whoever repeats our tests and results."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
INSTALLED = re.search(r"-e '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
OF_A_PLATFORM = ("nvidia-", "cuda-", "triton")  # what torch brings along on some machines


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    return [Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts]


def test_users_are_given_a_lower_bound_and_no_pin() -> None:
    for requirement in asked():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, f"{requirement}: no lower bound"
        assert not operators & {"==", "===", "~=", "<", "<="}, f"{requirement}: pinned or capped"


def test_constraints_pin_all_that_make_installs() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines)}
    assert all(pins.values())
    assert INSTALLED, "the Makefile's line that installs"
    if version("torch") != pins[canonicalize_name("torch")]:
        pytest.skip("needs the versions that are pinned; older and newer ones need other packages")
    extras = INSTALLED[1].split(",")
    missing = {
        name
        for name in needed(
            [Requirement(t) for t in (*PROJECT["dependencies"], *(x for e in extras for x in EXTRAS[e]))]
        )
        if name not in pins and not name.startswith(OF_A_PLATFORM)
    }
    assert not missing, "constraints.txt does not pin them"


def needed(requirements: list[Requirement]) -> set[str]:
    """The installed packages that these lead to."""
    found: set[str] = set()
    left = [(requirement, "") for requirement in requirements]
    while left:
        requirement, extra = left.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name in found and not requirement.extras:
            continue
        try:
            inner = requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        left += [(Requirement(text), of) for text in inner for of in ("", *requirement.extras)]
    return found - {"pah"}
