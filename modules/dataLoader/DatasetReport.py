from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetImage:
    """An image file that passed the check.

    Attributes:
        concept: index of its concept in the list of concepts.
        name: path below the concept's folder, with `/` between, in Unicode form NFC.
        path: path of the file.
        width, height: size in pixels, upright.
        sha256: hash of the file's bytes.
        captions: its caption, or several of which one is drawn at each use; at least one, possibly "".
        mask_path, mask_sha256: its mask file, None if it has none or the run reads no masks.
        full, mask_full, conditioning_full: value that means white, where the file says it; see `Decoded`.
        caption_path: of the file with its captions, "" if there is none.
        conditioning_path, conditioning_sha256: its conditioning image's file, None if none is read.
    """

    concept: int
    name: str
    path: str
    width: int
    height: int
    sha256: str
    captions: tuple[str, ...]
    mask_path: str | None = None
    mask_sha256: str | None = None
    full: float | None = None
    mask_full: float | None = None
    caption_path: str = ""
    conditioning_path: str | None = None
    conditioning_sha256: str | None = None
    conditioning_full: float | None = None


@dataclass(frozen=True)
class RejectedFile:
    """A file that is left out, and why."""

    concept: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: left out: {self.reason}"


@dataclass
class DatasetReport:
    """What the dataset check found.

    Attributes:
        images: usable files in a fixed order: by concept, then by name.
        rejected: files that are left out.
        warnings: other things worth knowing, one line each.
    """

    images: list[DatasetImage] = field(default_factory=list)
    rejected: list[RejectedFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The whole report for a person, one finding a line."""
        return [
            *(str(rejected) for rejected in self.rejected),
            *self.warnings,
            f"dataset: {len(self.images)} images, {len(self.rejected)} left out, {len(self.warnings)} warnings",
        ]
