"""Lower rooms never import higher ones: every import of `modules` and of the engine against the table of the design."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UTIL = {"util", "util/config", "util/enum"}
# room -> the rooms that it may import, beside itself; None: all of them
MAY_IMPORT: dict[str, set[str] | None] = {
    "util/enum": set(),
    "util/config": {"util/enum"},
    "util": {"util/config", "util/enum"},
    "module": UTIL,
    "model": UTIL,
    "modelSaver": UTIL | {"module", "model"},
    # it uses a model's encode calls, and whoever calls it hands the model in
    "dataLoader": UTIL,
    "trainer": UTIL | {"module", "modelSaver", "model", "dataLoader"},
    # how a run is started, watched and told what to do, in its own process or from another one
    "run": UTIL | {"trainer"},
    # what is done beside a training: samples, conversions, estimates
    "tool": UTIL | {"module", "modelSaver", "model", "dataLoader", "trainer"},
    # what the window shows and does, without a display
    "viewModel": UTIL | {"module", "modelSaver", "model", "dataLoader", "trainer", "run", "tool"},
    "ui": UTIL | {"viewModel"},
}
# measurements, the makers of the tiny base, the torture of runs: above all but the window, and used by no room
BENCHMARKS = "benchmarks"
MAY_IMPORT[BENCHMARKS] = UTIL | {"module", "modelSaver", "model", "dataLoader", "trainer", "run", "tool"}
# The engine is a distribution of its own: these rooms use it, and it uses nothing of theirs.
ENGINE = ROOT / "scaled-optim" / "scaled_optim"
PLUGIN = ROOT / "scaled-onetrainer" / "scaled_onetrainer"
USES_ENGINE = {"util/config", "module", "trainer", "tool", BENCHMARKS}
ENGINE_MAY_USE = {"torch", "scaled_optim"} | set(sys.stdlib_module_names)
# comes along with torch's own builds for GPUs, and is imported only where a kernel is launched
TRITON_IN = "kernels/triton_"
# lines of a function
LONGEST = 60


def room_of(module: str) -> str:
    """The room of a dotted name, which starts with `modules` or is that of a measurement."""
    if module.split(".")[0] == BENCHMARKS:
        return BENCHMARKS
    parts = module.split(".")[1:]
    return "/".join(parts[:2]) if parts[0] == "util" and parts[1:2] in (["config"], ["enum"]) else parts[0]


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, under `if TYPE_CHECKING` and inside functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide the room"
            # `from modules.trainer import backup` names a module as well
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


FILES = sorted([*(ROOT / "modules").rglob("*.py"), *(ROOT / BENCHMARKS).rglob("*.py")])


def test_the_walk_sees_imports():
    assert "modules.trainer.Ema.Ema" in imports(ROOT / "modules" / "trainer" / "Trainer.py")
    assert room_of("modules.util.config.TrainConfig.TrainConfig") == "util/config"
    assert room_of("modules.util.UserError.UserError") == "util"
    assert len(FILES) > 50


@pytest.mark.parametrize("room", sorted({room_of(".".join(path.relative_to(ROOT).parts)) for path in FILES}))
def test_room_imports_only_lower_rooms(room):
    assert room in MAY_IMPORT, f"{room} is a new room: DESIGN and this table should know it"
    wrong = []
    for path in FILES:
        if room_of(".".join(path.relative_to(ROOT).parts)) != room:
            continue
        for name in sorted(imports(path)):
            top = name.split(".")[0]
            if top in ("scripts", "tests"):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if top in ("modules", BENCHMARKS) and room_of(name) not in MAY_IMPORT[room] | {room}:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
            if top == "scaled_optim" and room not in USES_ENGINE:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle():
    """Of the trainer, the measurements, the engine and the plugin; an import inside of a function counts, too."""
    named = {}
    for base in (ROOT, ENGINE.parent, PLUGIN.parent):
        for top in ("modules", BENCHMARKS, ENGINE.name, PLUGIN.name):
            for path in sorted((base / top).rglob("*.py")):
                named[".".join(path.relative_to(base).with_suffix("").parts)] = path
    arrows = {name: (imports(path) & named.keys()) - {name} for name, path in named.items()}
    assert len(arrows) > 400
    # what imports nothing that is left is taken away, until only circles and what leads to them are left
    while ends := [name for name, targets in arrows.items() if not targets]:
        for name in ends:
            del arrows[name]
        arrows = {name: targets - set(ends) for name, targets in arrows.items()}
    assert not arrows, "\n".join(f"{name} -> {', '.join(sorted(targets))}" for name, targets in arrows.items())


def test_no_function_is_long():
    """At most 60 lines. One kernel is longer: what it computes stays in registers from its first line to its last."""
    kernels, long = {("triton_kernels.py", "step")}, []
    for folder in (ROOT / "modules", ROOT / BENCHMARKS, ENGINE, PLUGIN, ROOT / "scripts"):
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (path.name, node.name) not in kernels:
                    lines = node.end_lineno - node.lineno + 1
                    long += [f"{path.relative_to(ROOT)}, {node.name}: {lines}"] if lines > LONGEST else []
    assert not long, "\n".join(long)


def test_the_engine_needs_torch_only():
    files = sorted(ENGINE.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        tops = {name.split(".")[0] for name in imports(path)}
        may = ENGINE_MAY_USE | ({"triton"} if path.relative_to(ENGINE).as_posix().startswith(TRITON_IN) else set())
        assert tops <= may, f"{path.relative_to(ROOT)} imports {sorted(tops - may)}"


def test_triton_is_not_imported_before_a_kernel_is_launched():
    script = "import sys, scaled_optim.batched_optimizer; sys.exit('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ENGINE.parent)})
    assert done.returncode == 0


def test_modules_is_a_namespace_package():
    assert not (ROOT / "modules" / "__init__.py").exists()
