"""Old tasks asked in a step: a sample of them stands for all, whatever their number."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import digits, learned, small_pah, snapshot, some_batch
from pah.core.config import InputError
from pah.data.augment import AugmentOptions
from pah.data.task import Normalization, Step
from pah.methods import METHODS
from pah.methods.base import Method, OptimizerOptions, Terms
from pah.methods.pah import PAHOptions
from pah.methods.regularization import LwFOptions
from pah.methods.teacher import asked_tasks
from pah.models.backbones import ConvNetOptions
from pah.models.network import Network


def step(index: int) -> Step:
    return Step(0, 4, 0, index, AugmentOptions(), Normalization((0.5,), (0.5,)))


def test_a_step_asks_all_tasks_while_they_are_few_and_then_each_as_often_as_any_other() -> None:
    assert list(asked_tasks(range(5), 5, step(0))) == [0, 1, 2, 3, 4]
    asked = [tuple(asked_tasks(range(5), 2, step(index))) for index in range(2000)]
    assert asked == [tuple(asked_tasks(range(5), 2, step(index))) for index in range(2000)]
    pairs = Counter(asked)
    assert set(pairs) == set(itertools.combinations(range(5), 2))
    assert max(abs(count - 200) for count in pairs.values()) < 5 * 200**0.5  # ten pairs, five standard deviations


def lwf(**options: object) -> Method:
    torch.manual_seed(0)
    chosen = LwFOptions(**options)  # type: ignore[arg-type]
    backbone = ConvNetOptions(width=4).build(1)
    network = Network(backbone, chosen.build_heads(backbone.features, 1), (1, 8, 8))
    return METHODS["lwf"].method(network, OptimizerOptions(), chosen)


@pytest.mark.parametrize("over_tasks", ["mean", "sum"])
@pytest.mark.parametrize("name", ["pah", "lwf"])
def test_over_all_samples_losses_and_gradients_are_those_of_all_tasks(
    name: str, over_tasks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = digits(tasks=5)
    method = small_pah(over_tasks=over_tasks) if name == "pah" else lwf(over_tasks=over_tasks)
    learned(method, stream, 5)
    batch = some_batch(stream.tasks[4], seed=3)
    parameters, before = list(method.network.parameters()), snapshot(method)

    def of(asked: tuple[int, ...]) -> dict[str, Tensor]:
        """The weighted terms other than L_hm of a step that asks these tasks, and the gradient of each."""
        found: dict[str, Tensor] = {}

        def note(_: object, terms: Terms, weights: dict[str, float]) -> Terms:
            for term in terms.keys() & {"L_sm", "L_sp"}:
                loss = weights[term] * terms[term]
                slopes = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
                filled = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True))
                found[term] = torch.cat([loss.detach().reshape(1), *(g.flatten() for g in filled)])
            return terms

        module = f"pah.methods.{'pah' if name == 'pah' else 'regularization'}"
        monkeypatch.setattr(f"{module}.asked_tasks", lambda *_: list(asked))
        monkeypatch.setattr(f"{module}.descend", note)
        method.load_state_dict(before)  # batch norm's statistics, which a step moves
        method.observe(batch)
        return found

    whole = of((0, 1, 2, 3))
    samples = [of(pair) for pair in itertools.combinations(range(4), 2)]
    assert set(whole) == ({"L_sm", "L_sp"} if name == "pah" else {"L_sm"})
    for term, expected in whole.items():
        assert expected.any()
        assert not torch.allclose(samples[0][term], expected, rtol=1e-2)
        mean = torch.stack([sample[term] for sample in samples]).mean(dim=0)
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)


def test_the_teachers_answers_to_many_tasks_are_those_task_by_task() -> None:
    stream = digits(tasks=3)  # 4 + 3 + 3 classes
    method = small_pah()
    learned(method, stream, 3)
    for _ in range(30):
        method.network.grow(3)
    old = range(33)
    with torch.no_grad():
        together = method._answers_to_all(old)
        alone = [method._prototype_answers([k]) for k in old]
    assert together.shape == (sum(method.network.sizes(old)), 4)
    for k, (found, expected) in enumerate(zip(together.split(method.network.sizes(old)), alone, strict=True)):
        torch.testing.assert_close(found[:, : method.heads.sizes[k]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["old_tasks_per_step", "aligned_tasks_per_step"])
def test_each_term_asks_as_many_tasks_as_its_option_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = digits(tasks=5)
    few = {"old_tasks_per_step": 4, "aligned_tasks_per_step": 4} | {name: 2}
    method = small_pah(**few)
    learned(method, stream, 5)
    asked: dict[str, int] = {}
    for term, what in (("old_tasks_per_step", "_image_terms"), ("aligned_tasks_per_step", "alignment_loss")):
        whole = getattr(method, what)

        def noting(*words: Any, term: str = term, whole: Any = whole) -> Any:
            asked[term] = len(words[-1])
            return whole(*words)

        monkeypatch.setattr(method, what, noting)
    method.observe(some_batch(stream.tasks[4]))
    assert asked == few


@pytest.mark.parametrize("options", [PAHOptions, LwFOptions])
def test_a_step_asks_at_least_one_task(options: type[PAHOptions | LwFOptions]) -> None:
    with pytest.raises(InputError, match="old_tasks_per_step: expected at least 1, got 0"):
        options(old_tasks_per_step=0)
