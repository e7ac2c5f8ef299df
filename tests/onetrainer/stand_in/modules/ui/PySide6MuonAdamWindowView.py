from modules.ui.BaseMuonAdamWindowView import BaseMuonAdamWindowView


class PySide6MuonAdamWindowView(BaseMuonAdamWindowView):
    """Would be drawn by a toolkit."""
