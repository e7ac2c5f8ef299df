"""Opens workflows in ComfyUI's window, in a browser, as somebody does who drops the files onto it.

Runs with ComfyUI's Python and the package selenium; it knows nothing of this repository.

    python window.py URL JOBS RESULT

JOBS is a JSON list of {"file": workflow, "strengths": [numbers], "picture": PNG}: a workflow is run at each strength of
its adapter. RESULT gets a list of what the window made of each file.
"""

import json
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

READY_S, OPEN_S, RUN_S = 180, 60, 900
NODE_KINDS = 50
DROP = """
const data = new DataTransfer();
data.items.add(new File([arguments[0]], arguments[1], {type: "application/json"}));
const drop = new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: data});
(document.querySelector("#graph-canvas") || document).dispatchEvent(drop);
"""
READY = """
return Boolean(window.app && window.app.graph && window.LiteGraph
    && Object.keys(LiteGraph.registered_node_types).length > arguments[0]);
"""
NODES = """
return window.app.graph._nodes.map(node => ({
    type: node.type,
    known: node.type in LiteGraph.registered_node_types,
    widgets: (node.widgets || []).map(one => [one.name, one.value]),
    inputs: (node.inputs || []).map(one => [one.name, one.link != null]),
    outputs: (node.outputs || []).map(one => one.type),
}));
"""
SET_STRENGTH = """
for (const node of window.app.graph._nodes)
    for (const widget of node.widgets || [])
        if (widget.name.startsWith("strength_")) widget.value = arguments[0];
"""
RUN = "const done = arguments[0]; window.app.queuePrompt(0).then(done, error => done(String(error)));"
FIT = """
const canvas = window.app.canvas;
canvas.fitViewToSelectionAnimated ? (canvas.selectNodes(), canvas.fitViewToSelectionAnimated({duration: 1})) : null;
canvas.deselectAllNodes();
canvas.setDirty(true, true);
"""


def main() -> int:
    url, jobs, result = sys.argv[1:]
    browser = _browser()
    try:
        browser.get(url)
        _until(lambda: browser.execute_script(READY, NODE_KINDS), READY_S, "the window")
        # a new user is shown templates, over everything
        time.sleep(5)
        browser.execute_script("document.querySelectorAll('.p-dialog-close-button').forEach(one => one.click())")
        told = [_open(browser, url, job) for job in json.loads(Path(jobs).read_text(encoding="utf-8"))]
    finally:
        browser.quit()
    Path(result).write_text(json.dumps(told), encoding="utf-8")
    return 0


def _browser() -> webdriver.Chrome:
    options = Options()
    if program := shutil.which("chromium") or shutil.which("google-chrome"):
        options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1800,1000"):
        options.add_argument(argument)
    driver = shutil.which("chromedriver")
    browser = webdriver.Chrome(options=options, service=Service(driver) if driver else None)
    browser.set_script_timeout(OPEN_S)
    return browser


def _open(browser: webdriver.Chrome, url: str, job: dict[str, Any]) -> dict[str, Any]:
    """Drops one file and runs it; what its nodes are, and at each strength the picture's bytes as a sum."""
    file = Path(job["file"])
    text = file.read_text(encoding="utf-8")
    expected = sorted(node["type"] for node in json.loads(text)["nodes"])
    browser.execute_script(DROP, text, file.name)
    # read again after a pause, as widgets are filled when the nodes are there
    _until(lambda: sorted(one["type"] for one in browser.execute_script(NODES)) == expected, OPEN_S, file.name)
    time.sleep(2)
    told = {"file": file.name, "nodes": browser.execute_script(NODES), "pictures": {}}
    browser.execute_script(FIT)
    time.sleep(1)
    if job.get("picture"):
        browser.save_screenshot(job["picture"])
    for strength in job.get("strengths", []):
        browser.execute_script(SET_STRENGTH, strength)
        before = set(_history(url))
        if problem := browser.execute_async_script(RUN):
            print(f"{file.name}: {problem}", file=sys.stderr)
        _until(lambda before=before: set(_history(url)) - before, RUN_S, f"a picture of {file.name}")
        (new,) = set(_history(url)) - before
        told["pictures"][str(strength)] = _history(url)[new]
    return told


def _history(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/history") as answer:
        return json.load(answer)


def _until(done, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds} seconds")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
