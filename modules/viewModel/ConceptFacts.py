from collections.abc import Callable, Sequence

from modules.util.config.ConceptConfig import ConceptConfig
from modules.util.texts import tr, tr_n
from modules.viewModel.ConceptModel import FolderFacts, look_into, thumbnail, title_of
from modules.viewModel.Worker import Worker

from PIL import Image

Fact = tuple[FolderFacts, Image.Image | None]


class ConceptFacts:
    """What is in the folders of concepts, as far as it is known. One look goes on at a time.

    Args:
        worker: that looks: a folder may be large, or far away.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._known: dict[tuple[str, bool], Fact] = {}
        self._looking = False

    def of(self, concept: ConceptConfig) -> Fact | None:
        """Facts and thumbnail of a concept's folder; None as long as they are not known."""
        return self._known.get(_key(concept))

    def describe(self, concept: ConceptConfig) -> tuple[str, str]:
        """Name; type and count of images, or what is wrong with the folder."""
        known = self.of(concept)
        if known is None:
            return title_of(concept), tr("{type} · counting images …", type=concept.type)
        facts = known[0]
        counted = tr_n("{type} · {n} image", "{type} · {n} images", facts.count, type=concept.type)
        return title_of(concept), facts.trouble or counted

    def forget(self) -> None:
        """All folders are looked into again."""
        self._known.clear()

    def look(
        self,
        concepts: Sequence[ConceptConfig],
        edge: int,
        done: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Looks into the folders that are not known yet, unless it does so already: ask again when it is done.

        Args:
            concepts: whose folders are looked into.
            edge: of the thumbnails, in pixels.
            done: called when these are known.
            failed: called with what kept it from that.
        """
        missing = {_key(one): one.model_copy(deep=True) for one in concepts if self.of(one) is None}
        if not missing or self._looking:
            return
        self._looking = True

        def work() -> dict[tuple[str, bool], Fact]:
            found = {}
            for key, concept in missing.items():
                facts = look_into(concept)
                found[key] = facts, thumbnail(facts.first, edge) if facts.first else None
            return found

        def take(found: dict[tuple[str, bool], Fact]) -> None:
            self._looking = False
            self._known |= found
            done()

        def give_up(error: Exception) -> None:
            self._looking = False
            failed(error)

        self._worker.run(work, take, give_up)


def _key(concept: ConceptConfig) -> tuple[str, bool]:
    return concept.path, concept.include_subdirectories
