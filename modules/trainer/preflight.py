"""What can be known to be wrong before anything is loaded."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from modules.trainer.FusedBackward import check_fused
from modules.trainer.trained import methods_of
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.AttentionMechanism import AttentionMechanism
from modules.util.enum.DataType import DataType
from modules.util.UserError import UserError

import torch

TRAIN_DTYPES = (DataType.FLOAT_32, DataType.BFLOAT_16, DataType.FLOAT_16)


def resolve_device(config: TrainConfig) -> torch.device:
    """The device of `train_device`; `auto` takes the best one there is."""
    name = config.train_device
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"train_device: {name!r} is not a usable device here; expected auto, cpu, or cuda with a GPU and a torch "
            "that supports it."
        ) from error
    return device


def check_writable(path: Path, key: str, is_folder: bool) -> None:
    """Raises UserError if a file or folder can't be written, before hours are spent on what would go there."""
    if not is_folder and path.is_dir():
        raise UserError(f"{key}: {path} is a folder, expected a file name such as {path / 'lora.safetensors'}.")
    folder = path if is_folder else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{key}: {path} can't be written: {error.strerror}. Choose another place.") from error


def _check_supported(config: TrainConfig, trainable: Sequence[str], warn: Callable[[str], None]) -> None:
    if config.train_dtype not in TRAIN_DTYPES:
        allowed = ", ".join(TRAIN_DTYPES)
        raise UserError(f"train_dtype: found {config.train_dtype}, expected one of {allowed}.")
    refused = {
        "force_circular_padding": config.force_circular_padding,
        "debug_mode": config.debug_mode,
        "masked_prior_preservation_weight": config.masked_prior_preservation_weight > 0,
    }
    # the result is the same without them, and presets of others switch them on
    idle = {"compile": config.compile, "attention_mechanism": config.attention_mechanism != AttentionMechanism.SDP}
    for key in (key for key, found in idle.items() if found):
        warn(f"{key}: has no effect yet; the run trains the same without it, perhaps more slowly.")
    for part in trainable:
        own = getattr(config, part)
        refused[f"{part}.attention_mask"] = own.attention_mask
    for part in (*trainable, "vae"):
        refused[f"{part}.include"] = not getattr(config, part).include
    for key, found in refused.items():
        if found:
            raise UserError(f"{key}: not supported yet; remove it or set it to its default.")
    dropout = config.text_encoder.dropout_probability
    for part in trainable:
        own = getattr(config, part)
        if part.startswith("text_encoder_") and own.dropout_probability != dropout:
            warn(
                f"{part}.dropout_probability {own.dropout_probability:g} has no effect: a caption is dropped for all "
                f"text encoders at once, by text_encoder.dropout_probability, which is {dropout:g}."
            )


def check_run(config: TrainConfig, trainable: Sequence[str], warn: Callable[[str], None]) -> None:
    """Raises UserError for everything that would stop the run later: options without code, paths that can't be written.

    Args:
        config: the run's config.
        trainable: parts of the model family that can be trained.
        warn: gets a line for each option that is set but changes nothing.
    """
    methods = methods_of(config)
    _check_supported(config, trainable, warn)
    for method in methods:
        method.check(config, trainable, warn)
    if config.optimizer.fused_back_pass and (note := check_fused(config)):
        warn(note)
    check_writable(Path(config.workspace_dir), "workspace_dir", is_folder=True)
    check_writable(Path(config.cache_dir), "cache_dir", is_folder=True)
    output = Path(config.output_model_destination)
    if any(method.writes_folder(config) for method in methods):
        # its parent: the folder itself is made at the end
        check_writable(output.parent, "output_model_destination", is_folder=True)
    else:
        check_writable(output, "output_model_destination", is_folder=False)
    if config.prevent_overwrites and output.exists():
        raise UserError(
            f"output_model_destination: {output} exists and prevent_overwrites is on. Choose another name, or move it."
        )
