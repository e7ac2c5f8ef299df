from modules.ui.BaseMuonAdamWindowView import BaseMuonAdamWindowView


class CtkMuonAdamWindowView(BaseMuonAdamWindowView):
    """Would be drawn by a toolkit."""
