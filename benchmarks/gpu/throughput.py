"""Our training step against the loop that one would write with diffusers and peft alone."""

import importlib.util
from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.base import base_of, size_of
from benchmarks.gpu.Bench import Bench, Found, rows_of
from benchmarks.gpu.Row import NotMeasured, Row, State

CONCEPTS = ("training_concepts/tiny_concept/lumo", "training_concepts/tiny_concept/vintage")


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of this check."""
    kinds = {"plain": False, "checkpointing": True}
    return rows_of("throughput", bench, {
        f"LoRA, {name}": partial(_against_plain, bench, checkpointing) for name, checkpointing in kinds.items()
    })  # fmt: skip


def _against_plain(bench: Bench, checkpointing: bool) -> Found:
    if importlib.util.find_spec("peft") is None:
        raise NotMeasured("peft is not installed, with which the plain loop is written")
    from benchmarks.training.step_benchmark import OURS, PLAIN, PLAIN_FUSED, BenchmarkSettings, measure

    size, place = size_of(bench), bench.folder / f"throughput {checkpointing}"
    settings = BenchmarkSettings(
        model=str(base_of(bench)), concepts=CONCEPTS, batch=size.batch, resolution=size.resolution, rank=16,
        steps=2 if bench.small else 8, blocks=2 if bench.small else 6, profile_steps=0,
        checkpointing=checkpointing, dtype="float32" if bench.small else "bfloat16", more_peers=not bench.small,
        device=str(bench.device),
    )  # fmt: skip
    result = measure(settings, place, say=lambda text: None)
    seconds = result["seconds_per_step"][OURS]["median"]
    figures, text = {"step_seconds": seconds}, [f"{1e3 * seconds:.1f} ms a step"]
    for peer, name in ((PLAIN, "the plain loop's"), (PLAIN_FUSED, "the plain loop's with fused AdamW")):
        if (ratio := result["ratios"].get(f"{OURS}/{peer}")) is not None:
            figures[f"over_{peer}"] = ratio["median"]
            text.append(f"{ratio['median']:.2f}× {name}")
    return State.REPORTED, ", ".join(text), figures
