"""Packages import only those below them, none has a cycle, and no extra is needed to import `pah`."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

import pah

ROOT = Path(pah.__file__).parent

# lowest first
PACKAGES = (
    "core",
    "data",
    "models",
    "methods",
    "training",
    "learner",
    "runs",
    "study",
    "report",
    "tracking",
    "app",
    "cli",
)
ENTRY_POINTS = {"__init__.py", "__init__.pyi", "__main__.py"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """The modules of `pah` that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pah":
            assert node.module is not None
            base = node.module.removeprefix("pah").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                names.add(inner if (ROOT / f"{inner.replace('.', '/')}.py").exists() else base)
    return names


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def package(module: str) -> str:
    return module.split(".")[0]


def reached(module: str) -> set[str]:
    """The modules of its own package that a module imports, directly or through others."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        for other in IMPORTS[ahead.pop()]:
            if package(other) == package(module) and other not in found:
                found.add(other)
                ahead.append(other)
    return found


def test_every_module_is_in_a_package() -> None:
    assert {path.name for path in ROOT.iterdir() if path.is_file() and path.suffix in (".py", ".pyi")} == ENTRY_POINTS
    assert {package(name) for name, path in MODULES.items() if path.parent != ROOT} == set(PACKAGES)
    assert all((ROOT / name / "__init__.py").is_file() for name in PACKAGES)


def test_git_ignores_no_source_file() -> None:
    """A wheel leaves out what git ignores."""
    done = subprocess.run(
        ["git", "check-ignore", *map(str, MODULES.values())], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == ""


def test_packages_import_only_those_below_them() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if package(name) in PACKAGES and PACKAGES.index(package(other)) > PACKAGES.index(package(name))
    ]
    assert not wrong


def test_no_package_has_a_cycle() -> None:
    assert not [name for name in MODULES if name in reached(name)]


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    assert not {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 330}


EXTRAS = {"timm", "torchvision", "matplotlib", "jinja2", "ray", "gradio", "tensorboard", "wandb", "mlflow", "trackio"}
SLOW = {"datasets", "pandas", "huggingface_hub.hf_api", "pyarrow.dataset", "scipy.optimize", "sklearn", "torch._dynamo"}


def test_importing_pah_imports_no_extra_and_nothing_that_not_every_start_needs() -> None:
    code = "import sys, pah; print('torch' in sys.modules); [getattr(pah, name) for name in pah.__all__]; "
    code += f"import pah.cli; print({EXTRAS | SLOW} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "set()"]


def test_the_command_looks_for_garbage_but_not_in_what_it_imported() -> None:
    code = "import gc, sys; from pah.__main__ import main; sys.argv = ['pah', '--help']; status = main(); "
    code += "print(status, gc.isenabled(), gc.get_freeze_count() > len(gc.get_objects()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 True True"


def test_a_second_start_reads_its_data_without_what_decoded_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "photos" / name / f"{i}.png")
    code = f"import sys; from pah.data.sources import load_source; load_source({str(tmp_path / 'photos')!r}); "
    code += f"print({SLOW} & set(sys.modules))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
        ).stdout.strip()
        for _ in range(2)
    ]
    assert "datasets" in said[0], "which decoded them"
    assert said[1] == "set()"


def test_only_the_command_line_prints() -> None:
    printing = [
        module_name(path)
        for path in ROOT.rglob("*.py")
        if "cli" not in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing
