"""What ComfyUI makes of our workflows and adapters: its window opens them, its server runs them."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.comfyui.prepare import KINDS, LOST_LAYER, make_base, train, with_a_lost_layer, write_family_workflows
from modules.modelSaver.AdapterFile import read_adapter
from modules.tool.ComfyGraph import NODE_TYPES
from modules.util.UserError import UserError

from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[2]
START_S = 180
# what ComfyUI says of names in an adapter that it has no layer for, and of patches that fit none
TOO_MANY = "LoRA with a layer too many"
LOST = ("lora key not loaded", "NOT LOADED")


@dataclass(frozen=True)
class Comfy:
    """A ComfyUI.

    Attributes:
        folder: its checkout.
        python: that of its environment, with selenium.
        work: of models and outputs, instead of its own.
    """

    folder: Path
    python: Path
    work: Path


def check(comfy: Comfy, say: Callable[[str], None]) -> dict[str, Any]:
    """Prepares, starts ComfyUI on the CPU, opens and runs, and ends it.

    Returns:
        "comfyui", "commit": of the checkout; "adapters", "families": a row each.

    Raises:
        UserError: ComfyUI or the browser doesn't start.
    """
    make_base(comfy.work)
    adapters = {}
    for kind in KINDS:
        say(f"training {kind}")
        adapters[kind] = train(comfy.work, kind)
    adapters[TOO_MANY] = with_a_lost_layer(adapters["LoRA"])
    families = dict(write_family_workflows(comfy.work / "families", adapters["LoRA"]))
    nodes = comfy.work / "custom_nodes" / "scaled_oft"
    shutil.copytree(ROOT / "comfyui", nodes, dirs_exist_ok=True)
    with _server(comfy) as (url, log):
        say(f"ComfyUI {_version(url)} at {url}")
        rows = [_adapter_row(comfy, url, log, kind, path) for kind, path in adapters.items()]
        for row in rows:
            say(json.dumps(row))
        opened = _in_window(comfy, url, [{"file": str(path)} for path in families.values()])
        version = _version(url)
    return {
        "comfyui": version, "commit": _commit(comfy.folder), "adapters": rows,
        "families": [_family_row(name, told) for name, told in zip(families, opened, strict=True)],
    }  # fmt: skip


def faults(found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, a line each. Of families only nodes that this ComfyUI knows are looked at."""
    lines = [f"{row['name']}: {fault}" for row in (*found["adapters"], *found["families"]) for fault in row["wrong"]]
    for row in found["adapters"]:
        name, lost = row["name"], [LOST_LAYER] if row["name"] == TOO_MANY else []
        if row["unknown nodes"]:
            lines.append(f"{name}: ComfyUI does not know {row['unknown nodes']}")
        if not row["ran"]:
            lines.append(f"{name}: the workflow did not run to its end")
        if row["lost layers"] != lost:
            lines.append(f"{name}: lost layers are {row['lost layers']}, expected {lost}")
        if not row["changes the picture"]:
            lines.append(f"{name}: the picture is the same without it")
    return lines


def _adapter_row(comfy: Comfy, url: str, log: Path, kind: str, adapter: Path) -> dict[str, Any]:
    """Runs a workflow with the adapter and without it."""
    place = log.stat().st_size
    picture = comfy.work / f"{kind}.png"
    job = {"file": str(adapter.with_suffix(".json")), "strengths": [1, 0], "picture": str(picture)}
    (told,) = _in_window(comfy, url, [job])
    with log.open("rb") as read:
        read.seek(place)
        said = read.read().decode(errors="replace").splitlines()
    images = {strength: _image(comfy, history) for strength, history in told["pictures"].items()}
    row = _family_row(kind, told)
    lost = [line for line in said if any(mark in line for mark in LOST)]
    changed = all(images.values()) and _differ(*(path for path in images.values() if path))
    return row | {
        "layers": len(read_adapter(adapter).layers), "ran": all(images.values()), "lost": len(lost),
        "lost layers": sorted({line.split(":")[-1].strip().split(".")[0] for line in lost}),
        "changes the picture": changed,
    }  # fmt: skip


def _family_row(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """What the window made of a workflow: nodes it does not know, and those whose fields are other ones than ours."""
    wrong = [f"{node['type']}: {fault}" for node in told["nodes"] if node["known"] for fault in node_faults(node)]
    return {
        "name": name, "nodes": len(told["nodes"]),
        "unknown nodes": sorted({node["type"] for node in told["nodes"] if not node["known"]}), "wrong": wrong,
    }  # fmt: skip


def node_faults(node: Mapping[str, Any]) -> Iterator[str]:
    """Where a node in the window has other fields, links or outputs than in our file."""
    ours = NODE_TYPES[node["type"]]
    widgets = [name for name, _ in node["widgets"]]
    if (expected := list(ours.widgets)) != widgets[: len(expected)]:
        yield f"its fields are {widgets}, ours {expected}"
    linked = [name for name, is_linked in node["inputs"] if is_linked]
    if linked != list(ours.inputs):
        yield f"linked are {linked}, in our file {list(ours.inputs)}"
    if (given := tuple(node["outputs"])) != ours.outputs:
        yield f"it gives {given}, in our file {ours.outputs}"


@contextmanager
def _server(comfy: Comfy) -> Iterator[tuple[str, Path]]:
    """ComfyUI on a free port; its address and what it says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", comfy.work / "comfyui.log"
    command = [comfy.python, "main.py", "--cpu", "--port", str(port), "--base-directory", comfy.work.resolve()]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=comfy.folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait(url, process, log)
            yield url, log
        finally:
            process.terminate()
            process.wait(30)


def _wait(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            _version(url)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    last = " / ".join(log.read_text(errors="replace").splitlines()[-3:])
    raise UserError(f"ComfyUI did not start within {START_S} seconds. The end of {log}: {last}")


def _version(url: str) -> str:
    with urllib.request.urlopen(f"{url}/system_stats", timeout=10) as answer:
        return json.load(answer)["system"]["comfyui_version"]


def _commit(folder: Path) -> str:
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    return told.stdout.strip()


def _in_window(comfy: Comfy, url: str, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted, result = comfy.work / "jobs.json", comfy.work / "told.json"
    wanted.write_text(json.dumps(jobs), encoding="utf-8")
    result.unlink(missing_ok=True)
    script = Path(__file__).with_name("window.py")
    log = comfy.work / "window.log"
    with log.open("wb") as out:
        done = subprocess.run([comfy.python, script, url, wanted, result], stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"ComfyUI's window can't be driven; what the browser says is in {log}")
    return json.loads(result.read_text(encoding="utf-8"))


def _image(comfy: Comfy, history: Mapping[str, Any]) -> Path | None:
    """The picture of a run that ended well."""
    if history["status"]["status_str"] != "success":
        return None
    (image,) = (image for output in history["outputs"].values() for image in output.get("images", ()))
    return comfy.work / "output" / image["subfolder"] / image["filename"]


def _differ(first: Path, second: Path) -> bool:
    with Image.open(first) as one, Image.open(second) as other:
        return ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getbbox() is not None
