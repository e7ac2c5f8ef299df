from enum import StrEnum


class ImageFormat(StrEnum):
    """The file format of sample images."""

    PNG = "PNG"
    JPG = "JPG"

    @property
    def extension(self) -> str:
        """The file name's ending, with its dot."""
        return f".{self.value.lower()}"

    @property
    def pil_format(self) -> str:
        """The name under which Pillow knows the format."""
        return {"JPG": "JPEG"}.get(self.value, self.value)
