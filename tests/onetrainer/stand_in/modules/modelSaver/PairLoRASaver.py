from modules.modelSaver.mixin.InternalModelSaverMixin import InternalModelSaverMixin
from modules.modelSaver.mixin.LoRASaverMixin import LoRASaverMixin


class PairLoRASaver(LoRASaverMixin, InternalModelSaverMixin):
    def _get_state_dict(self, model):
        return model.adapter.state_dict()
