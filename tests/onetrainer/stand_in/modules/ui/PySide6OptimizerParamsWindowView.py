from modules.ui.BaseOptimizerParamsWindowView import BaseOptimizerParamsWindowView


class PySide6OptimizerParamsWindowView(BaseOptimizerParamsWindowView):
    """Would be drawn by a toolkit."""
