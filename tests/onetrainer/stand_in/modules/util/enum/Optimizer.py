from enum import Enum


class Optimizer(Enum):
    ADAMW = "ADAMW"
    ADAMW_ADV = "ADAMW_ADV"
    PRODIGY = "PRODIGY"
    SCHEDULE_FREE_SGD = "SCHEDULE_FREE_SGD"
    SGD = "SGD"

    @property
    def is_adaptive(self):
        return self is Optimizer.PRODIGY

    @property
    def is_schedule_free(self):
        return self is Optimizer.SCHEDULE_FREE_SGD

    def supports_fused_back_pass(self):
        return self is Optimizer.ADAMW_ADV

    def maybe_adjust_lrs(self, lrs, optimizer):
        found = [group.get("d", 1.0) if self.is_adaptive else 1.0 for group in optimizer.param_groups]
        return {name: lr * d for (name, lr), d in zip(lrs.items(), found, strict=False)}

    def __str__(self):
        return self.value
