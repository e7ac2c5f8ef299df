"""What alpha does in a LoRA: the same training with six alphas, once with SGD and once with Adam.

A linear layer of 4 x 4 numbers learns 16 random examples with a LoRA of rank 2. With SGD the learning rate is divided
by alpha and the start values by √alpha: every loss is the same. With Adam √alpha is what the learning rate must be
divided by; dividing by alpha, as for SGD, is shown to go wrong.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modules.module.LoRAModule import LoRAModule

import torch
from torch import nn
from torch.nn import functional as F

ALPHAS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)
WIDTH, EXAMPLES, RANK, STEPS = 4, 16, 2, 5
# name -> optimizer class, learning rate at alpha 1, its options with ε at alpha 1, power of alpha that divides the rate
RUNS = {
    "SGD, lr ÷ α": (torch.optim.SGD, 0.1, {}, 1.0),
    "Adam, lr ÷ √α, ε · √α": (torch.optim.Adam, 0.1, {"eps": 1e-8}, 0.5),
    "Adam, lr ÷ α": (torch.optim.Adam, 0.1, {"eps": 1e-8}, 1.0),
}


def losses(run: str, alpha: float, seed: int = 0) -> tuple[list[float], torch.Tensor]:
    """The loss before each step, and ΔW after the last.

    Args:
        run: a key of `RUNS`.
        alpha: of the LoRA; its start values are divided by √alpha.
        seed: of examples and start values.
    """
    kind, rate, options, power = RUNS[run]
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(EXAMPLES, WIDTH, generator=generator) for _ in range(2))
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5)
    adapter = LoRAModule(layer, "model", "layer", rank=RANK, alpha=alpha, seed=seed)
    with torch.no_grad():
        adapter.down.div_(alpha**0.5)
    adapter.hook()
    scaled = {name: value * alpha**0.5 for name, value in options.items()}
    optimizer = kind(adapter.parameters(), lr=rate / alpha**power, **scaled)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.l1_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found, adapter.merged_delta()


def experiment(seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """run -> alpha -> losses."""
    return {run: {f"{alpha:g}": losses(run, alpha, seed)[0] for alpha in ALPHAS} for run in RUNS}


def table(result: dict[str, dict[str, list[float]]]) -> str:
    """The result in Markdown, one table a run."""
    lines = []
    for run, rows in result.items():
        lines += [f"**{run}**", "", "| alpha | " + " | ".join(f"loss {k + 1}" for k in range(STEPS)) + " |"]
        lines += ["| --- |" + " --- |" * STEPS]
        lines += [f"| {alpha} | " + " | ".join(f"{loss:.7f}" for loss in row) + " |" for alpha, row in rows.items()]
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of examples and start values")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every number here")
    args = parser.parse_args(arguments)
    result = experiment(args.seed)
    print(table(result))
    if args.json:
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps({"seed": args.seed, "losses": result}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"error: {args.json}: {error.strerror}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
