from collections.abc import Callable
from typing import Any

from tqdm import tqdm


class ConsoleProgress:
    """Shows a run's events in a terminal: a bar for each stage, a line for everything else."""

    # the data room draws its own bars for these
    QUIET = ("check", "latents", "masks", "conditioning", "captions")

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.stage = ""
        self.smooth: float | None = None

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        if kind == "progress":
            if values["stage"] not in self.QUIET:
                self._show(values["stage"], values["done"], values["total"], values.get("unit", "it"))
        elif kind == "step":
            self._step(values)
        elif kind == "finished":
            self.close()
            self.note(self._summary(values["report"]))
        else:
            text = {
                "status": "{text}",
                "warning": "warning: {text}",
                "validation": "validation loss after step {step}: {loss:.5f}",
                "sample": "",
                "resumed": "",
                "record": "",
                "backup": "backup: {path}",
                "saved": "saved: {path}",
            }[kind].format(**values)
            if text:
                self.note(text)

    def steps(self, stage: str) -> Callable[[int, int], None]:
        """Shows a stage; the result is called with what is done and what there is to do."""
        return lambda done, total: self("progress", {"stage": stage, "done": done, "total": total})

    def download(self, stage: str, done: int, total: int) -> None:
        """Shows bytes of a stage."""
        self("progress", {"stage": stage, "done": done, "total": total, "unit": "bytes"})

    def _show(self, stage: str, done: int, total: int, unit: str = "it") -> None:
        if stage != self.stage:
            self.close()
            self.stage = stage
            size = {"unit": "B", "unit_scale": True} if unit == "bytes" else {"unit": unit}
            self.bar = tqdm(total=total, initial=done, desc=stage, mininterval=0.5, dynamic_ncols=True, **size)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            if done >= total:
                self.close()

    def _step(self, values: dict[str, Any]) -> None:
        loss = values["loss"]
        self.smooth = loss if self.smooth is None else 0.95 * self.smooth + 0.05 * loss
        self._show("training", values["step"], values["total"])
        if self.bar is not None:
            self.bar.set_postfix(epoch=values["epoch"], loss=f"{self.smooth:.4f}", refresh=False)

    @staticmethod
    def _summary(report: dict[str, Any]) -> str:
        pace = f", {report['seconds_per_step']:.3f} s per step" if report["seconds_per_step"] else ""
        first, last = report["first_loss"], report["final_loss"]
        losses = "no steps" if first is None else f"loss {first:.4f} -> {last:.4f}"
        memory = report["peak_memory_bytes"] / 2**20
        wait = f", {report['data_wait_share']:.1%} of it waiting for data" if pace else ""
        return f"{report['steps']} steps, {losses}{pace}{wait}, peak memory {memory:.0f} MiB"

    def note(self, text: str) -> None:
        tqdm.write(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.bar, self.stage = None, ""
