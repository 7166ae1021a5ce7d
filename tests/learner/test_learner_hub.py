"""Upload to and download from the hub, and the model card."""

import ast
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_learner import QUICK, lesson, same

from pah import ContinualLearner, InputError
from pah.learner import hub


@pytest.fixture(scope="module")
def learner() -> ContinualLearner:
    learner = ContinualLearner(config=QUICK)
    learner.learn("low", lesson(0, 1, 2))
    learner.learn("middle", lesson(3, 4), held_out={"low": lesson(0, 1, 2, part="test")})
    return learner


def test_a_saved_learner_has_a_card_of_tasks_classes_accuracies_and_data(
    learner: ContinualLearner, tmp_path: Path
) -> None:
    learner.save(tmp_path / "digits")
    card = (tmp_path / "digits" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "pah"
    rows = [line for line in text.splitlines() if line.startswith("| low") or line.startswith("| middle")]
    assert len(rows) == 2
    before, after = learner.history[-1].before["low"], learner.history[-1].accuracies["low"]
    for part in (
        "digit 0, digit 1, digit 2",
        "images",
        f"{before:.1f} | {after:.1f} | {learner.history[-1].images['low']}",
    ):
        assert part in rows[0]
    assert same(ContinualLearner.from_pretrained(tmp_path / "digits"), learner)


def test_names_in_the_card_are_shown_as_they_are(learner: ContinualLearner) -> None:
    task, *others = learner.predictor.record.tasks
    odd = dataclasses.replace(task, name='a|b `c` "d"', classes=("<b>x</b>", "great_tit", "_y_"), data="my|photos")
    card = hub.model_card(dataclasses.replace(learner.predictor.record, tasks=(odd, *others)))
    (row,) = (line for line in card.splitlines() if line.startswith("| a&#124;b"))
    assert row.count("|") == 9
    assert r"| a&#124;b \`c\` " in row
    assert r"&lt;b&gt;x&lt;/b&gt;, great_tit, \_y\_ |" in row
    assert "my&#124;photos" in row
    assert "it learned 2 tasks one after another" in card
    alone = hub.model_card(dataclasses.replace(learner.predictor.record, tasks=(odd,)))
    assert "it learned one task, without" in alone
    (call,) = (line for line in card.splitlines() if line.startswith("learner.predict"))
    assert ast.literal_eval(call.partition("task=")[2].removesuffix(")")) == odd.name


def test_a_downloaded_learner_equals_the_uploaded_one(
    learner: ContinualLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> str:
            return f"hub/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: str, **_: Any) -> None:
            shutil.copytree(folder_path, tmp_path / repo_id)

    def download(repo_id: str, **_: Any) -> str:
        return str(tmp_path / repo_id)

    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert learner.push_to_hub("me/digits") == "hub/me/digits"
    assert {file.name for file in (tmp_path / "me/digits").iterdir()} == {
        "README.md",
        "learner.json",
        "model.safetensors",
    }
    assert same(ContinualLearner.from_pretrained("me/digits"), learner)


def test_an_unreachable_hub_is_reported_in_one_line(learner: ContinualLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    with pytest.raises(InputError, match="a hub that answers"):
        learner.push_to_hub("me/digits")
    with pytest.raises(InputError, match=r"me/digits: expected a learner's folder or one on the hub") as caught:
        ContinualLearner.from_pretrained("me/digits")
    assert "\n" not in str(caught.value)
