"""Models in ONNX files, which onnxruntime computes on the CPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from modules.util.UserError import UserError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_model(path: Path) -> "InferenceSession":
    """A model that is ready to compute.

    Raises:
        UserError: onnxruntime is not installed, or the file can't be used.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"This model needs onnxruntime, which can't be loaded ({error}).") from error
    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # the library has an error of its own for each status, and no common parent of them
    except Exception as error:
        raise unusable(path, (str(error).strip() or type(error).__name__).splitlines()[0]) from error


def unusable(path: Path, why: str) -> UserError:
    """What to say of a file of a model that can't be used."""
    return UserError(f"--model: {path} can't be used: {why}.")
