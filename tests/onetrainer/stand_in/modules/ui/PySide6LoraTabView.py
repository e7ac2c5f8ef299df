from modules.ui.BaseLoraTabView import BaseLoraTabView


class PySide6LoraTabView(BaseLoraTabView):
    """Would be drawn by a toolkit."""
