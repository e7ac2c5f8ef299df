"""The way from photos to a workflow for ComfyUI, as docs/first_lora.md describes it, in one window."""

from tests.ui.walk import SHORT, Walk, installation

import pytest


@pytest.mark.usefixtures("forked_scripts")
def test_the_way_from_photos_to_comfyui(app, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps = []
    with installation(tmp_path / "trainer"):
        Walk(app, lambda name, window: steps.append(name), SHORT, photos=8).go()
    assert steps == [
        "start", "captions", "model", "concepts", "concept", "check", "sampling", "training", "running", "finished",
        "try", "workflow",
    ]  # fmt: skip
