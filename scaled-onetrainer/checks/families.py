"""Trains small models of other families in a real checkout of OneTrainer on the CPU, and resumes.

    python scaled-onetrainer/checks/families.py --onetrainer DIR --work FOLDER [--only TEXT] [--table FILE]

FOLDER/bases holds what make_tiny_bases.py wrote. To be run with the checkout's own Python, with the plugin installed
there.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from training import ALL_ON, DORA, FULL, LORA, METHODS, ORTHONORMAL, Case, check_case

COMPONENT = {"train": True, "weight_dtype": "FLOAT_32"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "SDXL": (
        "sdxl",
        {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder_2": {"train": False, "weight_dtype": "FLOAT_32"}},
    ),
    "Flux.2 Klein": (
        "flux2_klein",
        {"model_type": "FLUX_2", "transformer": COMPONENT, "output_model_format": "COMFY_LORA"},
    ),
}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "LoRA": ("SCALED_ADAMW_ADV", ALL_ON, LORA),
    "LoRA, Stiefel": ("STIEFEL_LORA", {}, {**LORA, **ORTHONORMAL}),
    "DoRA, RITE": ("LORA_RITE", {}, DORA),
    "OFT ELEMENTS": ("SCALED_ADAMW_ADV", ALL_ON, METHODS["OFT ELEMENTS"]),
    "full fine-tuning": ("SCALED_ADAMW_ADV", ALL_ON, FULL),
}


def checks() -> list[tuple[str, Callable[[Path], str]]]:
    found = []
    for family, (base, changes) in FAMILIES.items():
        for run, (optimizer, options, method) in RUNS.items():
            case = Case(f"{family}, {run}", optimizer, options, {**changes, **method})

            def check(folder: Path, case: Case = case, base: str = base) -> str:
                name = {"base_model_name": str(folder.parent / "bases" / base), "resolution": "128"}
                return check_case(Case(case.method, case.optimizer, case.options, {**case.changes, **name}), folder)

            found.append((case.name, check))
    return found


if __name__ == "__main__":
    sys.exit(report.main(__doc__, checks))
