"""Names that the mask tool knows by itself. The window reads them, so nothing heavy is imported here."""

KNOWN_MODELS = (
    "onnx-community/BiRefNet_lite-ONNX",
    "onnx-community/BiRefNet-ONNX",
    "onnx-community/ISNet-ONNX",
    "BritishWerewolf/U-2-Netp",
    "skytnt/anime-seg/isnetis.onnx",
    "CIDAS/clipseg-rd64-refined",
    "mattmdjaga/segformer_b2_clothes",
    "facebook/mask2former-swin-tiny-ade-semantic",
)
"""Names on the hub that are offered. Every other model of their kinds can be named, too."""

THRESHOLD = 0.5
"""Value of the model from which a pixel is white. CLIPSeg is less sure of itself than the others."""

HOLES = 0.1
"""Percent of a picture: smaller holes are filled."""

PREVIEW = 4
"""Pictures of a preview where nothing else is said."""

MOST_GROWTH = 500
"""Pixels by which a mask grows or shrinks at most."""

MOST_BLUR = 200.0
"""Radius of the blur at most, in pixels."""

KINDS = (
    "an ONNX model that removes backgrounds, a CLIPSeg model, or a model of semantic segmentation (SegFormer, "
    "Mask2Former and the like)"
)
"""What can be named, for messages."""
