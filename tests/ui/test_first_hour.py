"""The way from photos to a workflow for ComfyUI, as docs/first_lora.md describes it, in one window."""

from modules.ui.layout_faults import layout_faults
from tests.ui.walk import SHORT, Walk, installation

import pytest


@pytest.mark.usefixtures("forked_scripts")
def test_the_way_from_photos_to_comfyui(app, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    steps, faults = [], []

    def look(name: str, window) -> None:
        steps.append(name)
        faults.extend(f"{name}: {fault}" for fault in layout_faults(window))

    with installation(tmp_path / "trainer"):
        Walk(app, look, SHORT, photos=8).go()
    assert faults == [], "cut, covered or squeezed"
    assert steps == [
        "start", "captions", "pictures", "model", "concepts", "concept", "check", "sampling", "training", "running",
        "finished", "try", "workflow", "runs",
    ]  # fmt: skip
