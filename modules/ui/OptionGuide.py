from typing import TYPE_CHECKING

from modules.util.texts import tr
from modules.viewModel.form_tabs import OPTIMIZER, tab_of
from modules.viewModel.search_options import place_in_items, tab_of_list
from modules.viewModel.UiSettings import ALL

if TYPE_CHECKING:
    from modules.ui.App import App


class OptionGuide:
    """Leads to an option, wherever it stands.

    Args:
        app: the window.
    """

    def __init__(self, app: "App") -> None:
        self._app = app

    def go_to_problem(self, path: str) -> None:
        """Shows where something is wrong: of a list of concepts or the like, the tab that edits it."""
        if tab := tab_of_list(path):
            self._app.show_tab(tab)
        else:
            self.go_to(path)

    def go_to(self, path: str) -> None:
        """Shows an option, wherever it stands; a longer path counts as the option that it leads into."""
        app = self._app
        if (place := place_in_items(path)) is not None:
            app.show_tab(place.tab)
            app.say(
                tr(
                    "{option} is an option of {each}: Edit › {section}.",
                    option=tr(place.title), each=tr(place.each), section=tr(place.section),
                )
            )  # fmt: skip
            return
        while path and path not in app.form.fields:
            path = path.rpartition(".")[0]
        if not path:
            return
        section = next(section for section in app.form.sections if app.form.fields[path] in section.fields)
        tab = tab_of(section.group)
        if tab == OPTIMIZER:
            app.open_optimizer(path)
            return
        app.show_tab(tab)
        form, _ = app.views[tab]
        assert form is not None
        app.update_idletasks()
        if form.show_field(path):
            return
        if not form.everything and app.form.applies(path):
            app.show_view(ALL)
        if not form.show_field(path):
            self.say_what_it_needs(path)

    def say_what_it_needs(self, path: str) -> None:
        """Says why an option is not shown."""
        form = self._app.form
        self._app.say(tr("“{option}” matters only with {needs}.", option=form.title(path), needs=form.needs(path)))
