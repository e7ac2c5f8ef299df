from modules.util.config.TrainConfig import TrainConfig
from modules.util.LayerFilter import LayerFilter
from modules.util.UserError import UserError

import pytest

NAMES = [
    "conv_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.resnets.0.conv1",
    "mid_block.attentions.0.proj_in",
    "conv_out",
]
PRESETS = {"full": [], "attn-mlp": ["attentions"], "attn-only": ["attn"]}


def select(**options) -> list[str]:
    return LayerFilter.from_config(TrainConfig(**options), PRESETS).select(NAMES, "unet")


def test_empty_filter_is_all_layers_whatever_the_preset():
    assert select() == NAMES
    assert select(layer_filter=" , ", layer_filter_preset="attn-only") == NAMES


def test_parts_of_names():
    assert select(layer_filter="attentions") == [NAMES[1], NAMES[2], NAMES[4]]
    assert select(layer_filter="attn1, conv_in,") == NAMES[:2]


def test_regular_expressions():
    assert select(layer_filter=r"resnets\.\d+\.conv1$,^conv_", layer_filter_regex=True) == [
        NAMES[0],
        NAMES[3],
        NAMES[5],
    ]
    with pytest.raises(UserError, match="is in no layer name"):
        select(layer_filter=r"^conv_")  # plain text without the switch


def test_a_pattern_that_selects_nothing_names_layers():
    with pytest.raises(UserError) as error:
        select(layer_filter="attentions,down_block.0.resnets")
    assert "'down_block.0.resnets' is in no layer name of unet" in str(error.value)
    assert "down_blocks.0.resnets.0.conv1" in str(error.value) and "\n" not in str(error.value)


def test_bad_regular_expression():
    # straight into the class, as the config check would refuse it earlier
    with pytest.raises(UserError, match="not a regular expression"):
        LayerFilter(("attn(",), regex=True)


def test_disagreement_with_the_preset_is_noted():
    def notes(**options) -> tuple[str, ...]:
        return LayerFilter.from_config(TrainConfig(**options), PRESETS).notes

    assert notes() == () == notes(layer_filter="attn", layer_filter_preset="attn-only")
    assert notes(layer_filter="x", layer_filter_preset="custom") == ()
    (note,) = notes(layer_filter_preset="attn-only")
    assert "all layers are trained" in note and 'layer_filter to "attn"' in note


def test_commas_inside_of_an_expression():
    found = select(layer_filter=r"down_blocks\.\d{1,2}\.attentions, ^conv_(in,|out)", layer_filter_regex=True)
    assert found == [NAMES[1], NAMES[2], NAMES[5]]
    # plain text has no brackets
    assert select(layer_filter="conv_in,conv_out") == [NAMES[0], NAMES[5]]


def test_expressions_that_backtrack_without_end():
    names = [*NAMES, "a" * 90 + "."]
    chosen = LayerFilter.from_config(TrainConfig(layer_filter=r"(\w+)+in$", layer_filter_regex=True), PRESETS)
    assert chosen.select(names, "unet") == [NAMES[0], NAMES[4]]
    with pytest.raises(UserError, match="layer_filter: .*a reference to a group"):
        LayerFilter((r"(a+)+\1",), regex=True)
