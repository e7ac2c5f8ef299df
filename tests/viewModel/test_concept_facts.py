"""What is in the folders of concepts, found beside the window."""

import shutil

from modules.util.config.ConceptConfig import ConceptConfig
from modules.viewModel.ConceptFacts import ConceptFacts
from modules.viewModel.Worker import Worker
from tests.viewModel.finish import finish

import pytest


@pytest.fixture
def worker():
    return Worker()


def test_folders_are_counted_once(worker, tmp_path, mini_concept):
    folder = shutil.copytree(mini_concept, tmp_path / "pictures")
    facts, told = ConceptFacts(worker), []
    concepts = [ConceptConfig(path=str(folder)), ConceptConfig(path=str(tmp_path / "nowhere"), name="none")]
    assert facts.describe(concepts[0]) == ("pictures", "STANDARD · counting images …")
    facts.look(concepts, 16, lambda: told.append("done"), pytest.fail)
    facts.look(concepts, 16, lambda: told.append("twice"), pytest.fail)
    finish(worker)
    assert told == ["done"] and facts.describe(concepts[0]) == ("pictures", "STANDARD · 7 images")
    assert facts.of(concepts[0])[1].size == (16, 16)
    assert facts.describe(concepts[1]) == ("none", f"there is no folder {tmp_path / 'nowhere'}")
    (folder / "image 0.png").unlink()
    facts.look(concepts, 16, lambda: told.append("again"), pytest.fail)
    assert not worker.busy, "all is known"
    facts.forget()
    facts.look(concepts, 16, lambda: told.append("again"), pytest.fail)
    finish(worker)
    assert told == ["done", "again"] and facts.describe(concepts[0])[1] == "STANDARD · 6 images"


def test_a_failure_does_not_keep_it_from_looking_again(worker, monkeypatch, mini_concept):
    facts, errors, done = ConceptFacts(worker), [], []
    concept = ConceptConfig(path=str(mini_concept))
    monkeypatch.setattr("modules.viewModel.ConceptFacts.look_into", lambda one: 1 / 0)
    facts.look([concept], 16, done.append, errors.append)
    finish(worker)
    assert isinstance(errors[0], ZeroDivisionError) and facts.of(concept) is None
    monkeypatch.undo()
    facts.look([concept], 16, lambda: done.append(1), errors.append)
    finish(worker)
    assert done == [1] and facts.of(concept)[0].count == 7
