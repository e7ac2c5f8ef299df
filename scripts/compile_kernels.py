"""Compiles the optimizers' kernels for compute capability 9.0, without a GPU, and prints their registers and spills."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    """Prints a line for every kernel; returns 1 if one of them spills registers."""
    from benchmarks.optimizers.cases import FEATURES, combined
    from benchmarks.optimizers.compiling import compiled
    from scaled_optim.rules.registry import RULES

    import torch

    everything = combined(RULES["ADAMW_ADV"])
    cases = [(rule, {}, torch.float32) for rule in ("ADAMW_ADV", "ADOPT_ADV", "PRODIGY_ADV", "LION_ADV", "SIGNSGD_ADV")]
    cases += [("LORA_RITE", {}, torch.float32), ("ADAMW_ADV", everything, torch.float32)]
    cases += [("ADAMW_ADV", FEATURES[name], torch.bfloat16) for name in ("bf16_sr", "int8_sr", "factored")]
    cases.append(("ADAMW_ADV", {**everything, "state_precision": "int8_sr"}, torch.bfloat16))
    spilled = 0
    for rule, options, dtype in cases:
        for found in compiled(rule, options, dtype):
            spilled += found["spilled"]
            print(
                rule, ", ".join(options) or "plain", str(dtype)[6:], *(f"{key} {value}" for key, value in found.items())
            )
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
