"""Every kind of timm backbone: whether it learns two lessons, answers, is saved and loaded, forgets and is exported.

    python benchmarks/timm_backbones.py --json results/timm-backbones.json                 # all that the file lacks
    python benchmarks/timm_backbones.py --json results/timm-backbones.json --names vgg11   # these, again

Weights are random: no download is needed. Each backbone is tried frozen (`--backbone.train none`) and trained
(`all`), with the default options of a learner, except that a lesson takes two steps. It has a process of its own, so
that one that crashes or never ends leaves the others their time. The file is written after each backbone.
`python tools/tables.py` makes the table in docs/backbones.md of it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from resource import RLIMIT_CPU, RUSAGE_CHILDREN, getrusage, setrlimit
from signal import SIGXCPU
from typing import Any

import numpy as np
import torch

from pah import ContinualLearner
from pah.core.config import InputError
from pah.core.files import read_json, write_json
from pah.learner.defaults import defaults
from pah.models.batch_norm_folding import fold_batch_norm
from pah.models.timm_backbones import TimmOptions
from pah.training.config import RunConfig

NAMES = """
    starnet_s050 resnet10t ese_vovnet19b_slim_dw test_vit fasternet_t0 lcnet_035 cpubone_nano cspnext_tiny
    regnetx_002 mobilenetv4_conv_small_035 convnext_atto dla46_c mobilenetv3_small_050 mnasnet_small
    edgenext_xx_small efficientvit_b0 convnextv2_atto inception_next_atto mobilenetv2_035 mobilevitv2_050 hgnetv2_b0
    hardcorenas_a lcnetv2_small resnetv2_18 pvt_v2_b0 resnest14d legacy_seresnet18 test_vit_relpos efficientvim_m1
    mobilevit_xxs efficientnet_b0 ghostnet_050 darknet17 mambaout_femto lambda_resnet26t poolformer_s12 dpn48b
    repvgg_a0 rexnet_100 skresnet18 shvit_s1 iformer_t lowformer_b0 repghostnet_050 levit_128s fastvit_t8
    nf_resnet26 vit_tiny_r_s16_p8_224 hrnet_w18_small pit_ti_224 legacy_xception tiny_vit_5m_224 mixer_s32_224
    efficientvit_m0 swiftformer_xs repvit_m0_9 densenet121 xception41 rdnet_tiny selecsls42 vit_tiny_patch16_224
    deit_tiny_patch16_224 visformer_tiny efficientformerv2_s0 efficientformer_l1 xcit_nano_12_p16_224 davit_tiny
    focalnet_tiny_srf tresnet_m csatv2 convit_tiny res2net50_14w_8s nextvit_small eva02_tiny_patch14_224
    inception_v3 coat_lite_tiny gmlp_ti16_224 convmixer_768_32 mobileone_s0 resmlp_12_224 coatnet_pico_rw_224
    crossvit_tiny_240 gcvit_xxtiny hieradet_small qwen3_vit_88m twins_svt_small naflexvit_base_patch16_gap
    cait_xxs24_224 maxvit_rmlp_pico_rw_256 swin_tiny_patch4_window7_224 hiera_tiny_224 swinv2_cr_tiny_224
    mvitv2_tiny nest_tiny tnt_s_patch16_224 vitamin_small_224 vgg11 swinv2_tiny_window8_256 volo_d1_224
    gemma4_vit_167m beit_base_patch16_224 sequencer2d_s
"""
SIZES = (64, 96, 128, 160, 192, 224, 256)  # pixels a side that are tried in this order
IMAGES = 6  # of a class, of which a fifth is for testing
LIMIT = 600  # seconds of computation for a backbone
STEPS = ("learns", "answers", "saves", "forgets", "exports")


def try_all(names: list[str], path: Path) -> None:
    """Try each backbone in a process of its own and add it to the file."""
    import timm  # noqa: F401 - imported once for all processes, as is what the first export imports

    torch.onnx.export(torch.nn.Identity().eval(), (torch.zeros(1),), dynamo=True, verbose=False)
    for name in names:
        started, used = time.monotonic(), getrusage(RUSAGE_CHILDREN).ru_utime
        record: dict[str, Any] = {"name": name}
        with tempfile.NamedTemporaryFile("r") as lines:
            process = get_context("fork").Process(target=write_parts, args=(name, lines.name))
            process.start()
            process.join(10 * LIMIT)
            process.kill()
            process.join()
            for line in lines:
                merge(record, json.loads(line))
        if process.exitcode == -SIGXCPU or time.monotonic() - started > 10 * LIMIT:
            record["end"] = f"it took more than {LIMIT} s"
        elif process.exitcode != 0:
            record["end"] = f"its process ended with status {process.exitcode}"
        record["cpu_seconds"] = round(getrusage(RUSAGE_CHILDREN).ru_utime - used)
        print(json.dumps(record), flush=True)
        results = read_json(path) if path.exists() else {}
        records = {each["name"]: each for each in results.get("backbones", [])} | {name: record}
        write_json(path, description() | {"backbones": sorted(records.values(), key=lambda each: str(each["name"]))})


def write_parts(name: str, path: str) -> None:
    """Write the parts of the record of a backbone, a line each, as they come."""
    setrlimit(RLIMIT_CPU, (LIMIT, LIMIT))
    with Path(path).open("a", encoding="utf-8") as file:
        for part in try_one(name):
            print(json.dumps(part), file=file, flush=True)


def description() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import onnxruntime
    import timm

    return {
        "command": "python benchmarks/timm_backbones.py --json results/timm-backbones.json",
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "onnxruntime": onnxruntime.__version__},
        "images": IMAGES,
    }


def merge(record: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the results of a step to a record."""
    for key, value in part.items():
        if isinstance(value, dict):
            record.setdefault(key, {}).update(value)
        else:
            record[key] = value


def try_one(name: str) -> Iterator[dict[str, Any]]:
    """Yield parts of the record of a backbone: what it is, and for each way of training the outcome of each step.

    An outcome is "yes" or the error's line.
    """
    import timm

    yield {"family": timm.models.model_entrypoint(name).__module__.rpartition(".")[2]}
    try:
        size, features, parameters = find_size(name)
    except InputError as error:
        yield {"why": str(error)}
        return
    yield {"image_size": size, "features": features, "parameters": parameters}
    for train in ("none", "all"):
        trial = Trial(name, train, size)
        for step in STEPS if train == "all" else STEPS[:-1]:  # both are exported alike, which takes most of the time
            outcome = outcome_of(getattr(trial, step))
            yield {train: {step: outcome}}
            if outcome != "yes" and step == "learns":
                break


def find_size(name: str) -> tuple[int, int, int]:
    """Return the smallest image size that the backbone takes, its number of features and of parameters."""
    options = TimmOptions(model=name)
    sizes = [options.own_input_size] if options.has_fixed_input_size else SIZES
    refused = None
    for size in sizes:
        assert size is not None
        try:
            backbone = options.build_for(3, (size, size))
        except InputError as error:
            refused = error
            continue
        return size, backbone.features, sum(parameter.numel() for parameter in backbone.parameters())
    assert refused is not None
    raise refused


def outcome_of(step: Callable[[], None]) -> str:
    """Return "yes", or the line of the step's error."""
    try:
        step()
    except InputError as error:
        return f"refused: {error}"
    except Exception as error:
        import traceback

        traceback.print_exc()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
    return "yes"


class Trial:
    """One backbone, trained in one way, on its way through the steps."""

    def __init__(self, name: str, train: str, size: int) -> None:
        values = defaults(size).as_dict()
        values |= {"backbone": {"name": f"timm:{name}", "train": train}}
        values["training"] |= {"epochs": 1, "min_steps": 2}
        self.config = RunConfig.from_dict(values)
        self.images = pictures(size)
        self.folder = tempfile.TemporaryDirectory()

    def learns(self) -> None:
        """Learn two lessons of two classes."""
        self.learner = ContinualLearner(config=self.config)
        for lesson, classes in (("first", (0, 1)), ("second", (2, 3))):
            images = [image for c in classes for image in self.images[c]]
            labels = [f"class {c}" for c in classes for _ in self.images[c]]
            self.learner.learn(lesson, (images, labels))

    def answers(self) -> None:
        """Answer with and without the task, with batch norms folded as without."""
        images = [image for of_class in self.images for image in of_class[:2]]
        self.learner.predict(images)
        backbone = self.learner.predictor.method.network.backbone.eval()
        record = self.learner.predictor.record
        x = record.normalization(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
        with torch.inference_mode():
            features, folded, alone = backbone(x), fold_batch_norm(backbone)(x), backbone(x[1:2])
        assert features.isfinite().all(), "the features are not finite"
        assert not torch.equal(features[0], features[-1]), "the features of all images are equal"
        require_equal("features with folded batch norms differ", folded, features)
        require_equal("features differ from image to image of a batch", alone, features[1:2])

    def saves(self) -> None:
        """Save and load; answers are the same bit for bit."""
        folder = f"{self.folder.name}/learner"
        self.learner.save(folder)
        self.loaded = ContinualLearner.load(folder)
        images = [image for of_class in self.images for image in of_class[:2]]
        for task in ("first", "second", None):
            assert self.loaded.predict(images, task) == self.learner.predict(images, task), (
                "other answers after loading"
            )

    def exports(self) -> None:
        """Export; onnxruntime gives the learner's probabilities, for batches of any size."""
        import onnxruntime

        from pah.learner.export import export

        path = f"{self.folder.name}/learner.onnx"
        export(self.learner, path)
        session = onnxruntime.InferenceSession(path)
        images = [image for of_class in self.images for image in of_class[:2]]
        for given in (images, images[:1]):
            outputs = session.run(None, {"images": np.stack(given).transpose(0, 3, 1, 2)})
            for task, probabilities in zip(self.learner.tasks, outputs, strict=True):
                expected = [answer.probability for answer in self.learner.predict(given, task.name)]
                difference = np.abs(probabilities.max(axis=1) - expected).max()
                assert difference < 1e-4, f"probabilities in onnxruntime differ by {difference:.1g}"

    def forgets(self) -> None:
        """Forget the first lesson; answers for the second stay."""
        images = [image for of_class in self.images for image in of_class[:2]]
        self.loaded.forget("first")
        assert self.loaded.predict(images, "second") == self.learner.predict(images, "second"), "other answers"


def require_equal(message: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise AssertionError if tensors differ by more than rounding, relative to the largest value."""
    difference = float((actual - expected).abs().max() / expected.abs().max())
    assert difference < 1e-3, f"{message} by {difference:.1g} of the largest"


def pictures(size: int) -> list[list[np.ndarray[Any, Any]]]:
    """Return images (size, size, 3) of four classes: stripes of four directions with noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    classes = []
    for angle in np.pi * np.arange(4) / 4:
        wave = np.sin(24 * (np.cos(angle) * x + np.sin(angle) * y))[None, :, :, None]
        noise = random.normal(size=(IMAGES, size, size, 3))
        classes.append(list(np.clip(128 + 80 * wave + 30 * noise, 0, 255).astype(np.uint8)))
    return classes


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file to which the results are added")
    parser.add_argument("--names", help="backbones to try, though the file has them")
    options = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked
    done = {each["name"] for each in read_json(options.json)["backbones"]} if options.json.exists() else set()
    try_all(
        options.names.split(",") if options.names else [name for name in NAMES.split() if name not in done],
        options.json,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
