from modules.ui.BaseOptimizerParamsWindowView import BaseOptimizerParamsWindowView


class CtkOptimizerParamsWindowView(BaseOptimizerParamsWindowView):
    """Would be drawn by a toolkit."""
