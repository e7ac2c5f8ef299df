from dataclasses import dataclass, field

from modules.util.enum.ConceptType import ConceptType

from torch import Tensor


@dataclass
class Batch:
    """What one training step sees. b images of one size h x w; the encoder makes f x f pixels into one latent.

    Attributes:
        latents: [b, c, h/f, w/f], float32, posterior mean, not scaled.
        text: name -> [b, ...] as the model encodes captions; None if the captions must be encoded live.
        captions: b texts, "" where the caption is dropped.
        loss_weight: [b], float32, >= 0.
        mask: [b, 1, h/f, w/f], float32 from `unmasked_weight` to 1 (1: trained fully); None without masked training.
        placement: [b, 6], float32; (height, width) of the image itself, (top, left) of its crop after scaling, and
            (height, width) of what is trained, in pixels.
        names: b paths of image files.
        size: (height, width) in pixels.
        types: b types of the images' concepts.
        conditioning: name -> [b, ...] as the model encodes conditioning images, of any shape; None in families that
            take none.
        first, whole: where this is the part of a batch that one process trains: the place of its first image in the
            whole batch, and how many images that has. None: b of them.
        others: captions of the whole batch that are not in the part, where they decide how long texts are filled up.
    """

    latents: Tensor
    text: dict[str, Tensor] | None
    captions: list[str]
    loss_weight: Tensor
    mask: Tensor | None
    placement: Tensor
    names: list[str]
    size: tuple[int, int]
    types: list[ConceptType]
    conditioning: dict[str, Tensor] | None = None
    first: int = 0
    whole: int | None = None
    others: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        named = [*(self.text or {}).values(), *(self.conditioning or {}).values()]
        tensors = [self.latents, self.loss_weight, self.mask, self.placement, *named]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
