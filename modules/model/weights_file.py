"""Checkpoint files as people download them: their tensors' names and shapes first, the tensors when they are needed."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from modules.util.torch_file import load_torch_file
from modules.util.UserError import UserError

from torch import Tensor

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from modules.model.gguf_file import GgufFile

PICKLES = (".ckpt", ".pt", ".pth")
GGUF = ".gguf"


class WeightsFile:
    """A `.safetensors`, `.gguf`, `.ckpt`, `.pt` or `.pth` file with tensors. Pickles with other objects are refused.

    Attributes:
        path: of the file.
        shapes: of all tensors by name.
        metadata: text by name, of safetensors alone.

    Raises (all methods): UserError if the file is broken or none of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}
        suffix = path.suffix.lower()
        if suffix not in (".safetensors", GGUF, *PICKLES):
            raise UserError(
                f"{path}: found a {suffix or 'file without ending'}, expected .safetensors, .gguf or .ckpt."
            )
        self._pickled, self._quantized = suffix in PICKLES, suffix == GGUF
        if self._quantized:
            self.shapes = dict(_open_gguf(path).shapes)
            return
        if self._pickled:
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._unpickle().items()}
            return
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata = dict(file.metadata() or {})
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _broken(path, error) from error

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each of these names; a tensor may share memory with the file: copy what is kept."""
        if self._pickled:
            # mapped, unless it is in torch's oldest format
            loaded = self._unpickle()
            yield from ((name, loaded[name]) for name in names)
            return
        if self._quantized:
            file = _open_gguf(self.path)
            for name in names:
                try:
                    yield from file.tensors([name])
                except NotImplementedError as error:
                    raise UserError(
                        f"{self.path}: {name} has a number format that can't be read ({first_line(error)}). Take "
                        "another version of this file, such as Q8_0 or Q4_K_M."
                    ) from error
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                for name in names:
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _broken(self.path, error) from error

    def _unpickle(self) -> Mapping[str, Tensor]:
        loaded = _read_pickle(self.path)
        loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
        return {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _open_gguf(path: Path) -> "GgufFile":
    # brought in where it is needed: the package of the format loads others that nothing else here does
    from modules.model.gguf_file import READ_ERRORS, GgufFile

    try:
        return GgufFile(path)
    except READ_ERRORS as error:
        raise _broken(path, error) from error


def _read_pickle(path: Path) -> object:
    try:
        return load_torch_file(path, mapped=True)
    except pickle.UnpicklingError as error:
        # PyTorch's words for a pickle that is sound but calls or names something; a damaged one reads differently
        if not any(words in str(error) for words in ("GLOBAL", "Can only", "reduce for unrecognized", "instantiate")):
            raise _broken(path, error) from error
        raise UserError(
            f"{path}: refused, because it holds Python objects beside tensors, and loading those can run any code. "
            "Expected a checkpoint with tensors only: get the .safetensors version of this model, or convert it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> UserError:
    """What to say of a file that its own format's reader can't read."""
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as unreadable:
        return UserError(f"{path}: can't be read: {unreadable.strerror}.")
    if not start:
        what = "the file is empty"
    elif start.startswith(b"version https://git-lfs"):
        what = "this is a pointer to a file in Git LFS, not the file"
    elif start.lstrip()[:1] == b"<":
        what = "this is a web page, not a model"
    else:
        what = f"truncated, or not a {path.suffix} file ({first_line(error)})"
    return UserError(f"{path}: {what}. Download the model again.")


def first_line(error: Exception) -> str:
    """What an exception says, in one line of at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
