"""Measures how the storage modes of centered weight decay keep p₀: bytes, error, drift, and pull; prints tables."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measurement_command import parse_counts, write_numbers
from benchmarks.measuring import environment
from modules.util.exit_status import exit_status
from scaled_optim.anchors import ANCHORS, Anchor, Quantized, WrappedAnchor

import torch
from torch import Tensor

from safetensors import SafetensorError
from safetensors.torch import load_file

WEIGHTS = ROOT / "models" / "tiny_sd" / "unet" / "diffusion_pytorch_model.safetensors"
# rms of p − p₀ over the rms of p₀, per tensor
DISPLACEMENTS = (0.001, 0.01, 0.1, 1.0)
# from p₀, over the rms of p₀: where `full` ends up when gradients are noise
DISTANCES = (0.003, 0.01, 0.1)
# the decay of one step
RATE = 0.01
Stacks = list[Tensor]


def _firm(d: Tensor, zone: Tensor) -> Tensor:
    """0 up to the zone, d from twice the zone on, linear between."""
    return d.sign() * torch.minimum((2 * (d.abs() - zone)).clamp_(min=0), d.abs())


# what is left of d = p − q, where p₀ is within `zone` of q
ZONES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda d, zone: d,
    "hard": lambda d, zone: d.masked_fill(d.abs() <= zone, 0.0),
    "firm": _firm,
    "soft": lambda d, zone: d.sign() * (d.abs() - zone).clamp_(min=0),
}


def pull_in(zone: str, anchor: Anchor, store: dict[str, Tensor], p: Tensor) -> Tensor:
    """The pull with one of `ZONES`; `full` needs none."""
    if isinstance(anchor, Quantized) and zone != "hard":
        return ZONES[zone](*anchor.offset(store, p))
    return anchor.pull(store, p)


def stacks_of(path: Path, rows: int) -> Stacks:
    """The weights of a file as stacks `[b, rows, cols]` of equal shape, float32; the first `rows` rows of each."""
    by_shape: dict[tuple[int, int], Stacks] = defaultdict(list)
    for tensor in load_file(path).values():
        matrix = tensor[:rows].float().flatten(1) if tensor.dim() > 1 else tensor.float()[None]
        by_shape[tuple(matrix.shape)].append(matrix)
    return [torch.stack(group) for group in by_shape.values()]


def dora_scales(b: int, n: int) -> Tensor:
    """`[b, 1, n]`: what DoRA starts from, the norms of the rows of a weight whose rows differ by 15 %."""
    scale = torch.randn(b, n, 1).mul_(0.15).exp_().mul_(0.02)
    return (torch.randn(b, n, 640) * scale).norm(dim=2)[:, None]


def measured_stacks(weights: Path, rows: int, size: int) -> dict[str, Stacks]:
    """source -> stacks. rows: of each tensor of the file; size: rows and columns of the Gaussian weights."""
    unet = stacks_of(weights, rows)
    return {
        "unet": unet,
        "unet bf16": [stack.bfloat16().float() for stack in unet],
        "gaussian": [torch.randn(2, size, size)],
        "dora scales": [dora_scales(8, size)],
    }


def rms(x: Tensor) -> Tensor:
    """Per parameter, `[b, 1, 1]`; 1 for zeros."""
    value = x.square().mean((1, 2), keepdim=True).sqrt_()
    return torch.where(value == 0, 1.0, value)


def share(tensors: list[Tensor], total: int) -> float:
    return float(sum(float(tensor.double().sum()) for tensor in tensors) / total)


def laplace(shape: torch.Size) -> Tensor:
    """Heavy tails, variance 1."""
    uniform = torch.rand(shape).sub_(0.5)
    return -uniform.sign() * torch.log1p(-2 * uniform.abs().clamp_(max=0.5 - 1e-7)) / 2**0.5


def measure_storage(anchor: Anchor, stacks: Stacks) -> dict[str, float]:
    """Bytes a value, relative error of q, and the largest pull at p₀."""
    total = sum(stack.numel() for stack in stacks)
    size, errors, largest = 0, [], 0.0
    for p0 in stacks:
        store = anchor.create(p0)
        size += sum(tensor.nbytes for tensor in store.values())
        errors.append(((anchor.decode(store, p0) - p0) / rms(p0)).square_())
        largest = max(largest, float((anchor.pull(store, p0) / rms(p0)).abs().max()))
    return {
        "bytes_per_value": size / total,
        "relative_error": share(errors, total) ** 0.5,
        "largest_pull_at_start": largest,
    }


def measure_pull(anchor: Anchor, stacks: Stacks, displacement: float) -> dict[str, float]:
    """Σ pull·D / Σ D² of each zone, for Gaussian D = p − p₀; and the share of values that left the range."""
    total = sum(stack.numel() for stack in stacks)
    pulls, left, counted = defaultdict(list), [], []
    for p0 in stacks:
        unit = rms(p0)
        p = p0 + displacement * unit * torch.randn(p0.shape)
        true, store = (p - p0) / unit, anchor.create(p0)
        for zone in ZONES:
            pulls[zone].append(pull_in(zone, anchor, store, p) / unit * true)
        pulls["true"].append(true.square())
        counted.append(anchor.left_range(store, p))
        if isinstance(anchor, WrappedAnchor):
            # by more than rounding: what is wrong is wrong by a period, which is at least 16 steps
            left.append((anchor.decode(store, p) - p0).abs() > 4 * anchor.offset(store, p)[1])
    true = share(pulls.pop("true"), total)
    return {zone: share(tensors, total) / true for zone, tensors in pulls.items()} | {
        "left_range": share(left, total),
        "left_range_by_sketch": share(counted, total),
    }


def measure_drift(anchor: Anchor, stacks: Stacks, steps: int) -> dict[str, float]:
    """rms of p − p₀ over that of p₀ after steps of p ← p − RATE·pull without gradients; with the zone and without."""
    total, result = sum(stack.numel() for stack in stacks), {}
    for label, zone in (("drift", "hard"), ("drift_without_zone", "none")):
        errors = []
        for p0 in stacks:
            store, p = anchor.create(p0), p0.clone()
            for _ in range(steps):
                p.sub_(pull_in(zone, anchor, store, p), alpha=RATE)
            errors.append(((p - p0) / rms(p0)).square_())
        result[label] = share(errors, total) ** 0.5
    return result


def measure_walk(anchor: Anchor, p0: Tensor, steps: int) -> dict[str, dict[str, float]]:
    """Where gradients that are noise take p: zone -> distance -> rms of p − p₀ over that of p₀.

    The noise is such that exact centered decay holds p at a distance: with p ← (1 − c)p + noise the variance is
    noise²/(1 − (1 − c)²). p0: `[1, rows, cols]`; all distances walk at once, as one stack.
    """
    p0 = p0.expand(len(DISTANCES), -1, -1)
    noise = torch.tensor(DISTANCES)[:, None, None] * (1 - (1 - RATE) ** 2) ** 0.5 * rms(p0)
    result = {}
    for zone in ZONES:
        store, p = anchor.create(p0), p0.clone()
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            p.sub_(pull_in(zone, anchor, store, p), alpha=RATE)
            p.addcmul_(noise, torch.randn(p0.shape, generator=generator))
        reached = rms((p - p0) / rms(p0)).flatten().tolist()
        result[zone] = dict(zip(map(str, DISTANCES), reached, strict=True))
    return result


def measure_steps(bits: int, stacks: Stacks) -> list[dict[str, float | str]]:
    """Error of the decoded anchor, wrong values included, for each size of the step and of the displacement."""
    total, rows = sum(stack.numel() for stack in stacks), []
    for steps_per_rms in (64, 128, 256) if bits == 8 else (4, 8, 16):
        anchor = WrappedAnchor(bits, steps_per_rms)
        for shape, draw in (("gaussian", torch.randn), ("laplace", laplace)):
            for displacement in (0.01, 0.1, 0.2, 0.4):
                errors, left = [], []
                for p0 in stacks:
                    store, p = anchor.create(p0), p0 + displacement * rms(p0) * draw(p0.shape)
                    off = (anchor.decode(store, p) - p0).abs()
                    left.append(off > 4 * anchor.offset(store, p)[1])
                    errors.append((off / rms(p0)).square_())
                rows.append({"bits": bits, "steps_per_rms": steps_per_rms, "displacement_is": shape,
                             "displacement": displacement, "relative_error": share(errors, total) ** 0.5,
                             "left_range": share(left, total)})  # fmt: skip
    return rows


def measure(weights: Path, rows: int, size: int, steps: int) -> dict:
    """Everything, as it goes to JSON."""
    torch.manual_seed(0)
    sources = measured_stacks(weights, rows, size)
    # 1,000 steps of every mode over the whole model would take minutes
    few = [stack[:2, :8] for stack in sorted(sources["unet"], key=len)[-4:]]
    walker = sources["gaussian"][0][:1, :16]
    modes = {}
    for name, anchor in ANCHORS.items():
        by_source = {}
        for source, stacks in sources.items():
            pull = {str(displacement): measure_pull(anchor, stacks, displacement) for displacement in DISPLACEMENTS}
            by_source[source] = measure_storage(anchor, stacks) | {"pull": pull}
        modes[name] = {
            "sources": by_source,
            **measure_drift(anchor, few, steps),
            "walk": measure_walk(anchor, walker, steps),
        }
    return {
        "script": "scripts/measure_anchors.py",
        **environment(torch.device("cpu"), ["torch"]),
        "settings": {"rows": rows, "size": size, "steps": steps, "rate": RATE, "displacements": DISPLACEMENTS},
        "values": {source: sum(stack.numel() for stack in stacks) for source, stacks in sources.items()},
        "modes": modes,
        "wrapped_steps": [row for bits in (8, 4) for row in measure_steps(bits, sources["unet"])],
    }


def markdown(title: str, head: list[str], rows: list[list[str | float]]) -> str:
    """A table with a line above; numbers with three digits."""
    lines = [head, ["---"] * len(head)] + [
        [cell if isinstance(cell, str) else f"{cell:.3g}" for cell in row] for row in rows
    ]
    return f"\n{title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(result: dict) -> str:
    """Everything that was measured, for docs."""
    modes, settings = result["modes"], result["settings"]
    percent = [f"pull at {displacement:.1%}" for displacement in DISPLACEMENTS]
    sections = []
    for source in result["values"]:
        rows = []
        for name, mode in modes.items():
            one = mode["sources"][source]
            rows.append([name, one["bytes_per_value"], one["relative_error"], one["largest_pull_at_start"],
                         *(pull["hard"] for pull in one["pull"].values()),
                         *(one["pull"][str(d)]["left_range"] for d in DISPLACEMENTS[2:])])  # fmt: skip
        sections.append(markdown(f"{source}: {result['values'][source]:,} values; pull is Σ pull·D / Σ D²", [
            "mode", "bytes a value", "relative error", "largest pull at p₀", *percent, "left range at 10 %", "at 100 %",
        ], rows))  # fmt: skip
    drift = f"Drift after {settings['steps']} steps without gradients, decay {settings['rate']} a step"
    sections.append(markdown(drift, [
        "mode", "with the zone", "without"], [
        [name, mode["drift"], mode["drift_without_zone"]] for name, mode in modes.items()]))  # fmt: skip
    sections.append(markdown("Zones: pull in the unet", ["mode", "zone", *percent], [
        [name, zone, *(pull[zone] for pull in mode["sources"]["unet"]["pull"].values())]
        for name, mode in modes.items() if name != "full" for zone in ZONES]))  # fmt: skip
    sections.append(markdown("Zones: distance from p₀ over its rms, where gradients are noise", [
        "mode", "zone", *(f"`full` is at {at:.2%}" for at in modes["full"]["walk"]["none"].values())], [
        [name, zone, *mode["walk"][zone].values()]
        for name, mode in modes.items() if name != "full" for zone in ZONES]))  # fmt: skip
    sections.append(markdown("Wrapped: error of the anchor by step, in the unet", [
        "bits", "rms/s", "displacement", "of", "relative error", "left the range"], [
        [row["bits"], row["steps_per_rms"], row["displacement_is"], row["displacement"], row["relative_error"],
         row["left_range"]] for row in result["wrapped_steps"]]))  # fmt: skip
    return "\n".join(sections)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, metavar="SAFETENSORS", help="of a real model")
    parser.add_argument("--rows", type=int, default=16, help="of each of its tensors")
    parser.add_argument("--size", type=int, default=256, help="rows and columns of the Gaussian weights")
    parser.add_argument("--steps", type=int, default=1000, help="of drift and walk")
    parser.add_argument("--output", type=Path, metavar="JSON", help="write every number here")
    args = parse_counts(parser, arguments, ("rows", "size", "steps"))
    torch.set_num_threads(1)
    return exit_status(lambda: run(args), SafetensorError)


def run(args: argparse.Namespace) -> None:
    result = measure(args.weights, args.rows, args.size, args.steps)
    write_numbers(args.output, result)
    print(tables(result))


if __name__ == "__main__":
    sys.exit(main())
