"""The examples of the distribution's README, and the distribution in an environment of its own."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import torch
from torch import nn

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DISTRIBUTION = ROOT / "scaled-optim"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (DISTRIBUTION / "README.md").read_text(encoding="utf-8"), re.DOTALL)
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
TOML = [text for kind, text in BLOCKS if kind == "toml"]
PLAIN, PEFT = PYTHON
VERSION = tomllib.loads((DISTRIBUTION / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def run(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def loss_of(text: str) -> float:
    return float(re.search(r"loss ([\d.]+)", text)[1])


def test_trainer_and_engine_have_one_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == VERSION


def test_examples_are_short():
    assert all(text.count("\n") <= 30 for text in PYTHON + TOML) and len(TOML) == 1


def test_peft_and_diffusers():
    # 1.207 where the last step finds the model untrained
    text = run(PEFT)
    assert loss_of(text) < 1.15 and " 64 tensors" in text


class Network(nn.Module):
    """LoRAs with the names that kohya's networks give them, and the groups that these hand to optimizers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in ("lora_unet_to_q", "lora_unet_to_k"):
            part = nn.Module()
            part.lora_down, part.lora_up = nn.Linear(32, 16, bias=False), nn.Linear(16, 32, bias=False)
            nn.init.zeros_(part.lora_up.weight)
            self.add_module(name, part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sum(part.lora_up(part.lora_down(x)) for part in self.children())

    def groups(self) -> list[dict]:
        return [{"params": list(self.parameters()), "lr": 0.01}]


def test_kohya():
    """As its scripts read it: `module.Class`, and `key=value` where the value is a Python literal."""
    config = tomllib.loads(TOML[0])
    module, _, name = config["optimizer_type"].rpartition(".")
    options = {key: ast.literal_eval(value) for key, value in (text.split("=") for text in config["optimizer_args"])}
    network = Network()
    kind = getattr(importlib.import_module(module), name)
    optimizer = kind(network.groups(), lr=config["learning_rate"], **options)
    x = torch.randn(64, 32)
    losses = []
    for _ in range(50):
        loss = (network(x) - x).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert {batch.role.name for batch in optimizer._ready()} == {"LORA_DOWN", "LORA_UP"}
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A folder with the installed distribution, torch, and what torch needs; nothing else of this environment."""
    folder = tmp_path_factory.mktemp("alone")
    # pip leaves files of its own beside what it builds
    source = shutil.copytree(
        DISTRIBUTION, folder / "source", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    target = folder / "packages"
    subprocess.run([*install, "--target", str(target), str(source)], check=True, timeout=580, cwd=folder)
    names, files = ["torch"], set()
    for name in names:
        found = metadata.distribution(name)
        files |= {path.parts[0] for path in found.files or [] if path.parts[0] not in ("..", "__pycache__")}
        needed = (Requirement(text) for text in found.requires or [])
        names += [r.name for r in needed if r.name not in names and (not r.marker or r.marker.evaluate({"extra": ""}))]
    assert {"sympy", "filelock"} <= set(names) and "numpy" not in names
    for file in files:
        (target / file).symlink_to(Path(metadata.distribution("torch").locate_file(file)).resolve())
    return target


def run_alone(code: str, packages: Path) -> str:
    """Runs code without the environment's packages, this folder, or anything that variables name."""
    return run(f"import sys; sys.path.append({str(packages)!r})\n{code}", "-I", "-S")


def test_an_environment_with_torch_alone(alone):
    found = run_alone("import scaled_optim; print(scaled_optim.__file__, scaled_optim.__version__, *sys.path)", alone)
    assert str(ROOT) not in found and "site-packages" not in found and found.split()[1] == VERSION
    everything = """
import importlib, importlib.util, pathlib, scaled_optim
assert importlib.util.find_spec("numpy") is None and importlib.util.find_spec("modules") is None
home = pathlib.Path(scaled_optim.__file__).parent
for path in sorted(home.rglob("*.py")):
    if not path.stem.startswith("triton_"):
        importlib.import_module(".".join(path.relative_to(home.parent).with_suffix("").parts))
assert importlib.util.find_spec("triton") is None
assert (home / "py.typed").exists()
for name in scaled_optim.__all__:
    getattr(scaled_optim, name)
print(len(list(home.rglob("*.py"))))
"""
    assert int(run_alone(everything, alone)) == len(list((DISTRIBUTION / "scaled_optim").rglob("*.py"))) > 40
    # 84.7 untrained
    assert loss_of(run_alone(PLAIN, alone)) < 0.1
