"""What a parameter is for its layer, and what follows from that for its step.

Axes of a stack: b parameters of one role and shape, each seen as a matrix `[rows, cols]`.
"""

from dataclasses import dataclass
from typing import Any

PER_ROW, PER_COLUMN, WHOLE = (2,), (1,), (1, 2)
# (rows, cols) of a tensor that is seen as a matrix
Shape = tuple[int, int]


@dataclass(frozen=True)
class Role:
    """How the features see the parameters of a role.

    Attributes:
        name: the value of `ParameterRole`, by which adapters and model families name it; see `described_role`.
        unit: dimensions of a stack that make up one unit (a rank, an OFT block, or the whole tensor).
        matrix: whether it multiplies activations as a matrix, so that its singular values matter.
        starts_from_model: whether zero means the original model, so that decay to zero is decay to the start.
    """

    name: str
    unit: tuple[int, ...] = WHOLE
    matrix: bool = False
    starts_from_model: bool = False

    @property
    def vector(self) -> bool:
        """Whether it is a list of numbers, whatever its shape."""
        return self.name in ("DORA_SCALE", "VECTOR")

    def unit_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Shape of one number per unit, broadcastable to `[rows, cols]`."""
        return (1 if 1 in self.unit else rows, 1 if 2 in self.unit else cols)


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        # A [r, d_in]: a rank is a row
        Role("LORA_DOWN", PER_ROW, matrix=True, starts_from_model=True),
        # B [d_out, r]: a rank is a column
        Role("LORA_UP", PER_COLUMN, matrix=True, starts_from_model=True),
        # [blocks, b(b-1)/2]: the upper triangle of each skew block
        Role("OFT", PER_ROW, starts_from_model=True),
        Role("DORA_SCALE"),
        Role("HIDDEN", matrix=True),
        # embeddings, whose rows are looked up, and first convolutions
        Role("INPUT"),
        # a first linear layer
        Role("INPUT_MATRIX", matrix=True),
        Role("OUTPUT", matrix=True),
        Role("VECTOR"),
    )
}


def parameter_info(parameter: Any) -> Any:
    """What the program attached to a parameter as `parameter_info`, with `role` and `name`; None: nothing."""
    return getattr(parameter, "parameter_info", None)


def described_role(info: Any) -> str:
    """The role of a parameter with such a description: an INPUT whose `matrix` is true multiplies activations."""
    role = str(info.role)
    return "INPUT_MATRIX" if role == "INPUT" and getattr(info, "matrix", False) else role


def default_role(shape: tuple[int, ...]) -> str:
    """The role of a parameter that nobody described: a matrix is hidden, anything smaller a vector."""
    return "HIDDEN" if len(shape) > 1 else "VECTOR"


def matrix_shape(shape: tuple[int, ...]) -> Shape:
    """A tensor's shape as a matrix: convolutions `[out, in·kh·kw]`, vectors one row."""
    if len(shape) < 2:
        return 1, shape[0] if shape else 1
    cols = 1
    for size in shape[1:]:
        cols *= size
    return shape[0], cols
