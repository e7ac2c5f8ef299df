"""Geometry and colours of a variation."""

import colorsys

from modules.dataLoader.ImageVariation import ImageVariation
from modules.dataLoader.render import change_colours, cut_to_circle, find_geometry, render_mask, render_pixels, turn_hue
from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.config.resolution import parse_resolutions

import torch

import pytest
from PIL import Image

RESOLUTIONS = parse_resolutions("64")


def variation(**options) -> ImageVariation:
    return ImageVariation(resolution=RESOLUTIONS[0], **options)


def draw(number: int = 0, **image) -> ImageVariation:
    concept = ConceptConfig.from_dict({"image": {"enable_crop_jitter": False, **image}})
    return ImageVariation.draw(concept, "a.png", number, RESOLUTIONS)


def rendered(image, size, drawn) -> torch.Tensor:
    return render_pixels(image, find_geometry(*image.size, size, drawn), drawn)


@pytest.mark.parametrize("source", [(64, 64), (200, 100), (100, 300), (33, 47)])
@pytest.mark.parametrize("angle", [0.0, 10.0, -45.0, 90.0])
@pytest.mark.parametrize("crop", [(0.0, 0.0), (1.0, 0.3)])
def test_the_crop_lies_inside_and_fills_the_bucket(source, angle, crop):
    geometry = find_geometry(*source, (64, 48), variation(angle=angle, crop=crop))
    left, top, right, bottom = geometry.box
    assert 0 <= left < right <= source[0] and 0 <= top < bottom <= source[1]
    # the same scale both ways: nothing is stretched
    assert geometry.inner[0] / (right - left) == pytest.approx(geometry.inner[1] / (bottom - top))
    # no empty corners: a white image stays white when it is turned
    drawn = variation(angle=angle, crop=crop)
    assert rendered(Image.new("RGB", source, "white"), (64, 48), drawn).min() > 0.98


def test_an_image_of_the_right_size_is_unchanged(picture):
    pixels = rendered(picture(64, 48), (64, 48), variation())
    expected = torch.tensor(list(picture(64, 48).get_flattened_data())).reshape(48, 64, 3).permute(2, 0, 1) / 127.5 - 1
    assert pixels.shape == (3, 48, 64) and torch.allclose(pixels, expected, atol=1e-6)


def test_flip(picture):
    plain, flipped = (rendered(picture(64, 48), (64, 48), variation(flip=flip)) for flip in (False, True))
    assert torch.equal(plain.flip(-1), flipped) and not torch.equal(plain, flipped)


def test_rotation_direction():
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (40, 24, 56, 40))  # on the right
    turned = rendered(image, (64, 64), variation(angle=90.0))
    assert turned[:, :24, 24:40].min() < 0 and turned[:, 40:, :].min() > 0.9  # counter-clockwise: now at the top


def test_crop_place(picture):
    left, right = (rendered(picture(128, 64), (64, 64), variation(crop=(x, 0.5))) for x in (0.0, 1.0))
    assert torch.equal(left, rendered(picture(128, 64).crop((0, 0, 64, 64)), (64, 64), variation()))
    assert torch.equal(right, rendered(picture(128, 64).crop((64, 0, 128, 64)), (64, 64), variation()))


def test_colours():
    pixels = torch.tensor([0.8, 0.4, 0.2])[:, None, None].expand(3, 4, 4).contiguous()
    grey = 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2
    assert change_colours(pixels, variation(brightness=0.5))[:, 0, 0].tolist() == pytest.approx([0.4, 0.2, 0.1])
    assert change_colours(pixels, variation(brightness=2.0)).max() == 1
    assert change_colours(pixels, variation(saturation=0.0))[:, 0, 0].tolist() == pytest.approx([grey] * 3)
    assert change_colours(pixels, variation(contrast=0.0))[:, 0, 0].tolist() == pytest.approx([grey] * 3)
    assert torch.equal(change_colours(pixels, variation()), pixels)


@pytest.mark.parametrize("shift", [0.0, 0.1, -0.3, 0.5])
def test_hue_agrees_with_the_standard_library(shift):
    pixels = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0))
    pixels[:, 0, 0], pixels[:, 0, 1] = 0.5, 0.0  # grey has no hue
    turned = turn_hue(pixels, shift)
    for y in range(5):
        for x in range(5):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixels[:, y, x].tolist())
            expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            assert turned[:, y, x].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("purpose", "option", "neutral", "scale"),
    [
        ("brightness", "random_brightness_max_strength", 1.0, 1.0),
        ("contrast", "random_contrast_max_strength", 1.0, 1.0),
        ("saturation", "random_saturation_max_strength", 1.0, 1.0),
        ("hue", "random_hue_max_strength", 0.0, 0.5),
        ("rotate", "random_rotate_max_angle", 0.0, 1.0),
    ],
)
def test_off_random_and_fixed(purpose, option, neutral, scale):
    def value(number=0, **image):
        drawn = draw(number, **{option: 0.4}, **image)
        return drawn.angle if purpose == "rotate" else getattr(drawn, purpose)

    assert value() == neutral
    assert value(**{f"enable_fixed_{purpose}": True}) == pytest.approx(neutral + 0.4 * scale)
    values = [value(number, **{f"enable_random_{purpose}": True}) for number in range(50)]
    assert len(set(values)) == 50 and all(abs(v - neutral) <= 0.4 * scale for v in values)
    assert min(values) < neutral < max(values)


def test_random_flip_jitter_and_resolution():
    assert {draw(number, enable_random_flip=True).flip for number in range(20)} == {False, True}
    assert draw(enable_fixed_flip=True).flip and not draw().flip
    assert len({draw(number, enable_crop_jitter=True).crop for number in range(20)}) == 20
    assert draw().crop == (0.5, 0.5)
    several = parse_resolutions("64,128")
    chosen = {ImageVariation.draw(ConceptConfig(), "a.png", number, several).resolution for number in range(20)}
    assert chosen == set(several)


def test_one_option_does_not_change_the_others():
    plain, flipped = draw(3, enable_crop_jitter=True), draw(3, enable_crop_jitter=True, enable_random_flip=True)
    assert plain.crop == flipped.crop


def test_mask_follows_the_image():
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    drawn = variation(flip=True)
    values = render_mask(mask, find_geometry(64, 48, (64, 48), drawn), drawn)
    assert values.shape == (1, 48, 64) and values[..., :32].max() == 0 and values[..., 32:].min() == 1
    assert render_mask(None, find_geometry(64, 48, (64, 48), drawn), drawn).min() == 1


def test_circle_is_inside_the_mask():
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:30, 5:35] = 1
    circle = cut_to_circle(mask, seed=12345, share=0.5)
    assert 0 < circle.sum() < mask.sum() and ((circle > 0) <= (mask > 0)).all()
    assert torch.equal(cut_to_circle(mask, seed=7, share=1.0), mask)
    assert torch.equal(cut_to_circle(torch.zeros(1, 8, 8), seed=7, share=1.0), torch.zeros(1, 8, 8))
