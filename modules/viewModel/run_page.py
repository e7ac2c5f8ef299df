"""A run as one HTML file that can be sent to somebody: curves, pictures, what it took, and what was set."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from modules.run.RunControl import EVENTS
from modules.run.RunProcess import RunProcess
from modules.util.config.BaseConfig import BaseConfig
from modules.util.config.errors import ConfigError
from modules.util.config.field_type import option_of
from modules.util.config.load import load_train_config
from modules.util.config.read_json import read_json
from modules.util.config.TrainConfig import TrainConfig
from modules.util.config.whole_file import replacing
from modules.util.UserError import UserError
from modules.viewModel.curves import bounds, decimate, tick_texts, ticks
from modules.viewModel.paths import is_folder
from modules.viewModel.run_data import read_run
from modules.viewModel.run_list import GONE, RECORDS, REPORT, WAITING, ListedRun, find_runs
from modules.viewModel.run_summary import Summaries
from modules.viewModel.RunModel import RunModel, SamplePicture, duration, file_size

from PIL import Image

# of a plot, in pixels; and of a picture's longer side
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 900, 260, 64, 24, 28
SIDE, QUALITY = 384, 85
MOST_POINTS, MOST_ROUNDS = 600, 6
COLORS = {"each step": "#9db8d2", "smoothed": "#2f7fc2", "validation": "#d97a2b"}
RATE_COLORS = ("#7a5cc2", "#3c9a5f", "#d97a2b", "#2f7fc2")
# why nothing of a run is there, by its state
_WHY = {WAITING: "waits in the queue", GONE: "has lost its folder"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
body { color: #222; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
.pictures { overflow-x: auto } .pictures img { width: 136px; display: block } .muted { color: #777 }
svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #777 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1d20 } }
"""

Point = tuple[float, float]


def run_page(folder: Path) -> str:
    """The page of a run.

    Of paths in the config only the last part is shown, and access tokens never stand in configs.

    Args:
        folder: of the run's records: below `ui_runs/`, or one of `scripts/train.py --control`; or its workspace, whose
            newest run is taken, or one of the folders in `record` there.

    Raises:
        UserError: no run is there.
    """
    if not (folder / EVENTS).is_file() or folder.parent.name == RECORDS:
        return listed_page(_listed(folder))
    model = RunModel()
    model.follow(RunProcess.find(folder) or RunProcess(folder))
    model.tick()
    config = _config(folder / "config.json")
    return _page(_title(model, config, folder), model.status, model, config)


def listed_page(run: ListedRun) -> str:
    """The same of a run of the list. Reads all of its events; not for a window's own thread.

    Raises:
        UserError: nothing of it is there, as it waits or its folder is gone.
    """
    if run.state in _WHY:
        raise UserError(f"{run.name}: there is nothing of this run to show, as it {_WHY[run.state]}.")
    data, model = read_run(run.events, run.workspace), RunModel()
    model.losses, model.smoothed = data.loss.points(), data.loss.points(smooth=True)
    model.validation = data.validation.points()
    model.rates = {name: curve.points() for name, curve in data.rates.items()}
    model.samples, model.report = data.pictures, _report(run)
    status = " ".join([f"{run.state.capitalize()}.", *run.reason.split()])
    return _page(run.name, status, model, _config(run.config) if run.config is not None else None)


def page_place(run: ListedRun) -> Path | None:
    """Where the page of a run of the list is written; None if there is nothing to show, or no place for it."""
    if run.state in _WHY or run.workspace is None or not is_folder(run.workspace):
        return None
    return run.workspace / f"{run.name} run.html"


def write_page(run: ListedRun, target: Path, overwrite: bool) -> None:
    """Writes the page of a run of the list.

    Raises:
        UserError: as `listed_page`, or the file has come meanwhile.
        OSError: it can't be written.
    """
    page = listed_page(run).encode()
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists by now. It is not replaced.")
    with replacing(target, ".partial") as file:
        file.write(page)


def _listed(folder: Path) -> ListedRun:
    """The run whose records or workspace a folder is."""
    workspace = folder.parents[1] if folder.parent.name == RECORDS else folder
    for run in find_runs(folder / "no sessions of a window", folder, [workspace], Summaries()):
        if run.workspace == workspace and (folder == workspace or any(folder == file.parent for file in run.events)):
            return run
    text = f"expected {EVENTS}, or the workspace of a run. Name a workspace, or a folder below ui_runs/."
    raise UserError(f"{folder}: found no records of a run, {text}")


def _report(run: ListedRun) -> dict[str, Any]:
    """What `run.json` says, if it is of this run: it is that of the last one in a workspace."""
    try:
        report = read_json(run.workspace / REPORT) if run.workspace is not None else {}
    except ConfigError:
        return {}
    return report if report.get("steps") == run.summary.steps else {}


def _page(title: str, status: str, model: RunModel, config: TrainConfig | None) -> str:
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(title)}</title><style>{STYLE}</style>",
        f"<h1>{_text(title)}</h1><p>{_text(status)}</p>",
        _table(_facts(model, config)),
        "<h2>Loss</h2>",
        _plot({"each step": model.losses, "smoothed": model.smoothed, "validation": model.validation}, COLORS),
        "<h2>Learning rate</h2>",
        _plot(model.rates, dict(zip(model.rates, RATE_COLORS * len(model.rates), strict=False)), zero=True),
        _pictures(model),
    ]
    if config is not None:
        parts += ["<h2>What differs from the defaults</h2>", _table(_changes(config, TrainConfig()))]
    if model.log:
        parts += ["<h2>Messages</h2>", "<pre>", *(f"{_text(line)}\n" for line in model.log), "</pre>"]
    return "".join([*parts, "</html>\n"])


def _text(value: object) -> str:
    return html.escape(str(value))


def _config(file: Path) -> TrainConfig | None:
    try:
        return load_train_config(file, warn=lambda text: None)
    except (ConfigError, OSError):
        # a run of the command line, or of another version
        return None


def _title(model: RunModel, config: TrainConfig | None, folder: Path) -> str:
    if model.saved is not None:
        return model.saved.name
    return PurePath(config.output_model_destination).name if config is not None else folder.name


def _facts(model: RunModel, config: TrainConfig | None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if config is not None:
        found += [
            ("base model", f"{PurePath(config.base_model_name).name} ({config.model_type})"),
            ("method", config.training_method),
            ("optimizer", f"{config.optimizer.optimizer}, learning rate {config.learning_rate:g}"),
        ]
    if model.losses:
        found.append(("steps", str(model.losses[-1][0])))
    report = model.report
    for name, key, shown in (
        ("time a step", "seconds_per_step", lambda value: f"{value:.3g} s"),
        ("training", "training_seconds", duration),
        ("peak memory", "peak_memory_bytes", file_size),
        ("device", "device", str),
    ):
        if report.get(key) is not None:
            found.append((name, shown(report[key])))
    return found + [(name, str(version)) for name, version in report.get("versions", {}).items()]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = (f"<tr><td class=muted>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(lines)}</table>"


def _changes(config: BaseConfig, default: BaseConfig, prefix: str = "") -> list[tuple[str, str]]:
    """Option -> value of what is not as a new config has it."""
    found: list[tuple[str, str]] = []
    for name in type(config).model_fields:
        value, usual = getattr(config, name), getattr(default, name)
        if isinstance(value, BaseConfig) and isinstance(usual, BaseConfig):
            found += _changes(value, usual, f"{prefix}{name}.")
        elif value != usual and not isinstance(value, (list, dict)):
            secret = option_of(type(config), name)
            shown = "…" if secret.secret else PurePath(value).name if secret.path and value else value
            found.append((f"{prefix}{name}", str(shown)))
    return found


def _plot(series: dict[str, Sequence[Point]], colors: dict[str, str], zero: bool = False) -> str:
    """Lines over steps as SVG."""
    shown = {name: decimate(points, MOST_POINTS) for name, points in series.items() if points}
    if not shown:
        return "<p class=muted>nothing yet</p>"
    low, high = bounds(list(shown.values()))
    low = 0.0 if zero else low
    first, last = (end(point[0] for points in shown.values() for point in points) for end in (min, max))

    def place(point: Point) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (point[0] - first) / max(1, last - first)
        y = 8 + (HEIGHT - BOTTOM - 8) * (1 - (min(max(point[1], low), high) - low) / (high - low))
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 22}" width={WIDTH} height={HEIGHT + 22}>']
    heights = ticks(low, high)
    for value, text in zip(heights, tick_texts(heights), strict=True):
        y = place((first, value)).split(",")[1]
        parts.append(f'<line x1={LEFT} x2={WIDTH - RIGHT} y1={y} y2={y} stroke="#8884"/>')
        parts.append(f"<text x={LEFT - 8} y={float(y) + 4:.1f} text-anchor=end>{text}</text>")
    steps = ticks(first, last)
    for value, text in zip(steps, tick_texts(steps), strict=True):
        x = place((value, low)).split(",")[0]
        parts.append(f"<text x={x} y={HEIGHT - 8} text-anchor=middle>{text}</text>")
    for name, points in shown.items():
        line = " ".join(map(place, points))
        parts.append(f'<polyline points="{line}" fill=none stroke="{colors[name]}" stroke-width=1.6 />')
    for index, name in enumerate(shown):
        x = LEFT + 170 * index
        parts.append(
            f'<line x1={x} x2={x + 18} y1={HEIGHT + 12} y2={HEIGHT + 12} stroke="{colors[name]}" stroke-width=3 />'
        )
        parts.append(f"<text x={x + 24} y={HEIGHT + 16}>{_text(name)}</text>")
    return "".join([*parts, "</svg>"])


def _pictures(model: RunModel) -> str:
    """A row for each prompt: its first and last picture, and some between."""
    rows = []
    for prompt in model.prompts():
        cells = "".join(map(_picture, _some(model.pictures(prompt))))
        if cells:
            rows.append(f"<h3>{_text(prompt)}</h3><div class=pictures><table><tr>{cells}</tr></table></div>")
    return f"<h2>Samples</h2>{''.join(rows)}" if rows else ""


def _some(pictures: Sequence[SamplePicture]) -> list[SamplePicture]:
    if len(pictures) <= MOST_ROUNDS:
        return list(pictures)
    last = len(pictures) - 1
    return [pictures[round(last * place / (MOST_ROUNDS - 1))] for place in range(MOST_ROUNDS)]


def _picture(picture: SamplePicture) -> str:
    try:
        with Image.open(picture.path) as image:
            shown = image.convert("RGB")
            shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    except OSError:
        # it was removed since
        return ""
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<td><img src="data:image/jpeg;base64,{data}" alt=""><span class=muted>step {picture.step}</span></td>'
