"""The plain loop's run of the comparison, in a process of its own: python -m benchmarks.trainers.plain CONFIG.

Reads what it needs of the config that the trainers get. Prints JSON. It keeps nothing on disk, so that each of its
starts encodes everything.
"""

import json
import random
import sys
import time
from pathlib import Path

from benchmarks.trainers.contest import images_of
from benchmarks.training.plain_loop import PlainLoop, PlainSettings

import torch
from torch import nn

import numpy
from diffusers import UNet2DConditionModel
from PIL import Image, ImageOps

LAYERS = (nn.Linear, nn.Conv2d)


def peak_bytes() -> int:
    """The most memory that this process held so far."""
    # not on Windows
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others KiB
    return peak if sys.platform == "darwin" else 1024 * peak


def main() -> None:
    """Trains; the last line has the time of each step's end, peak memory and the number of trained numbers."""
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(config["base_model_name"], subfolder="unet")
        )
    layers = {"unet": [name for name, module in unet.named_modules() if isinstance(module, LAYERS)]}
    settings = PlainSettings(
        Path(config["base_model_name"]), layers, config["lora_rank"], config["lora_alpha"], config["learning_rate"],
        1.0, torch.float32, False, cached=True, fused=False, device=torch.device("cpu"),
    )  # fmt: skip
    examples, side = [], int(config["resolution"])
    for concept in config["concepts"]:
        for path in images_of(Path(concept["path"])):
            picture = ImageOps.fit(Image.open(path).convert("RGB"), (side, side), Image.Resampling.LANCZOS)
            pixels = torch.from_numpy(numpy.array(picture)).permute(2, 0, 1) / 127.5 - 1
            examples.append((pixels, path.with_suffix(".txt").read_text(encoding="utf-8").strip()))
    loop, ended = PlainLoop(settings, examples), []
    for _ in range(config["epochs"]):
        rows = random.sample(range(len(examples)), len(examples))
        size = config["batch_size"]
        for start in range(0, len(rows) - size + 1, size):
            loop.run([rows[start : start + size]])
            ended.append(time.time())
    loop.close()
    trained = sum(parameter.numel() for parameter in loop.parameters)
    print(json.dumps({"ended": ended, "peak_bytes": peak_bytes(), "trained": trained}))


if __name__ == "__main__":
    main()
