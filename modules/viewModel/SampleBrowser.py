from modules.viewModel.RunModel import RunModel, SamplePicture


class SampleBrowser:
    """Which of a run's pictures is looked at: those of one prompt, by their steps. At the end it follows the newest.

    Attributes:
        prompts: of which there are pictures.
        prompt: the chosen one, "" before the first picture.
        pictures: of that prompt, by step.
        place: of the one that is looked at, 0 for the first.
    """

    def __init__(self) -> None:
        self._model = RunModel()
        self._follows = True
        self.prompts: list[str] = []
        self.pictures: list[SamplePicture] = []
        self.prompt, self.place = "", 0

    @property
    def last(self) -> int:
        """Place of the newest picture; -1 if there is none."""
        return len(self.pictures) - 1

    @property
    def picture(self) -> SamplePicture | None:
        """The one that is looked at."""
        return self.pictures[self.place] if self.pictures else None

    @property
    def can_go_back(self) -> bool:
        return self.place > 0

    @property
    def can_go_on(self) -> bool:
        return self.place < self.last

    def show(self, model: RunModel) -> None:
        """Takes in what a run has drawn so far."""
        self._model, self.prompts = model, model.prompts()
        if self.prompt not in self.prompts:
            self.prompt, self._follows = self.prompts[0] if self.prompts else "", True
        self.pictures = model.pictures(self.prompt)
        self.go(self.last if self._follows else self.place)

    def choose(self, prompt: str) -> None:
        """Looks at the newest picture of another prompt."""
        self.prompt, self._follows = prompt, True
        self.show(self._model)

    def go(self, place: int) -> None:
        """Looks at another picture of the prompt."""
        self.place = max(0, min(self.last, place))
        self._follows = self.place >= self.last
