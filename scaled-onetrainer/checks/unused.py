"""Trains with OneTrainer's own AdamW and OFT and prints what came of it: with the plugin installed the same as without.

    python scaled-onetrainer/checks/unused.py --onetrainer DIR --work FOLDER

To be run with the checkout's own Python. Nothing of the plugin is imported here.
"""

import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path

import torch

from upstream import config_of, enter, train

SETTINGS = {
    "LoRA": {"optimizer": {"optimizer": "ADAMW"}},
    "OFT": {
        "peft_type": "OFT_2",
        "oft_block_size": 16,
        "oft_scaled": True,
        "optimizer": {"optimizer": "ADAMW_ADV"},
        "include_train_config": "ALL",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onetrainer", type=Path, required=True, metavar="DIR", help="a checkout of OneTrainer")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="for what the runs write")
    args = parser.parse_args()
    work = args.work.resolve()
    torch.set_num_threads(2)
    enter(args.onetrainer.resolve())
    found = {}
    for name, settings in SETTINGS.items():
        config = config_of(work / name, settings)
        run = train(config)
        written = json.dumps(config.to_settings_dict(secrets=False), sort_keys=True)
        found[name] = {
            "losses": [loss.hex() for loss in run.losses],
            "file": _file_hash(run.file),
            "config": _hash(written.encode()),
        }
    print(json.dumps(found, indent=1))
    return 0


def _file_hash(path: Path) -> str:
    """Of everything in a safetensors file but the order of its header, which safetensors itself draws at random."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True)
    return _hash(header.encode() + data[8 + size :])


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
