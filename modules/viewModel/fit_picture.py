import math


def fit_picture(
    size: tuple[int, int], room: tuple[int, int], largest: float = math.inf
) -> tuple[tuple[int, int], float]:
    """A picture's size where it is as large as there is room for, of at least one pixel, and its scale.

    Args:
        size, room: width and height, in pixels.
        largest: scale.
    """
    scale = min(room[0] / size[0], room[1] / size[1], largest)
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), scale
