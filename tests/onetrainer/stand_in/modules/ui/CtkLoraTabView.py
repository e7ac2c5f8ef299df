from modules.ui.BaseLoraTabView import BaseLoraTabView


class CtkLoraTabView(BaseLoraTabView):
    """Would be drawn by a toolkit."""
