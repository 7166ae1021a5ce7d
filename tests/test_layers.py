"""Imports point down only, siblings do not import each other, and no extra is needed to import `pah`."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

import pah

ROOT = Path(pah.__file__).parent

# lowest first; the modules of one entry are siblings
LAYERS = [
    {"config", "losses", "metrics", "hub", "ranks"},
    {"devices"},
    {"data.augment", "data.image"},
    {"data.decode", "data.listing"},
    {"data.columns"},
    {"data.sources"},
    {"data.stream", "data.lesson"},
    {"data.small_lessons"},
    {"data.benchmarks"},
    {"models.backbones", "models.prototypes", "models.modes", "models.statistics"},
    {"models.hypernetwork", "models.folding"},
    {"models.network"},
    {"models.columns", "models.masked", "models.embedding", "models.class_statistics"},
    {"models.partial"},
    {"methods.teacher", "methods.base", "methods.buffer"},
    {"methods.pah", "methods.bounds", "methods.replay"},
    {"methods.regularization", "methods.gcr", "methods.architecture", "methods.hat", "methods.hypernet"},
    {"methods"},
    {"checkpoint", "training"},
    {"evaluation"},
    {"trainer"},
    {"runconfig", "runfolder"},
    {"learnerfolder", "inference"},
    {"taught"},
    {"records", "sharing", "teaching"},
    {"learner"},
    {"export"},
    {"app.words"},
    {"app.packed"},
    {"app.uploads"},
    {"runs", "study.bootstrap", "diagnosis"},
    {"study.grid", "study.table"},
    {"study.tuning", "report.figures", "report.rundata", "study.away"},
    {"study.errands"},
    {"study.cluster"},
    {"report.ablation", "report.exhibit", "tracking.tool"},
    {"report.curves", "report.training", "report.pictures", "report.classes", "tracking.tools"},
    {"report.inside"},
    {"report.single"},
    {"report.comparing"},
    {"report.page"},
    {"study.comparison", "study.ablation"},
    {"tracking.sending"},
    {"cli.words", "cli.display", "cli.stopping"},
    {"cli.lines"},
    {"app.lesson", "app.process"},
    {"app.asking"},
    {"app.desk", "app.gallery"},
    {"app.views"},
    {"app.service"},
    {"app.rooms"},
    {"app.api", "app.offline"},
    {"app.teachtab"},
    {"app.page"},
    {"app.server"},
    {"app"},
    {"cli.parser"},
    {"cli.options", "cli.gridview", "cli.learning", "cli.reporting", "cli.serving"},
    {"cli.watching"},
    {"cli.main"},
    {"cli"},
    {"__main__", ""},
]
PURE = {"config"}  # what every layer may use, its own included


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


def level(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def test_imports_point_down() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = module_name(path)
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        for other in imported(path):
            if other not in PURE and level(other) >= level(own):
                wrong.append(f"{own or 'pah'} imports {other}")
    assert not wrong


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
