"""Plots that were drawn on white, in the colours of the window."""

from PIL import Image, ImageColor


def in_colors(plot: Image.Image, paper: str, ink: str) -> Image.Image:
    """White becomes `paper`, black `ink`, what is between keeps its hue.

        out = ink + (paper − ink)·M·in,  M = 1 on light paper, M·in = 2·mean(in) − in on dark paper

    On dark paper paper − ink is negative, which turns every hue to its opposite; M has turned it there before.

    Args:
        plot: on white.
        paper, ink: colours as `#rrggbb`.
    """
    ends = list(zip(ImageColor.getrgb(paper), ImageColor.getrgb(ink), strict=True))
    dark = sum(light - black for light, black in ends) < 0
    matrix: list[float] = []
    for channel, (light, black) in enumerate(ends):
        factor = (light - black) / 255
        row = [factor * (2 / 3 if dark else 0.0)] * 3
        row[channel] += -factor if dark else factor
        matrix += [*row, float(black)]
    return plot.convert("RGB").convert("RGB", tuple(matrix))
