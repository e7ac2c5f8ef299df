from dataclasses import dataclass, field

# Cards as they are sold: a card of 12 GB has 12 GiB.
CARDS = (6, 8, 10, 12, 16, 24, 32, 48, 80)
GIB = 2**30
# What is added to an estimate, as runs on a CPU took up to 5.1 % more: docs/benchmarks/memory_estimate.json.
SHORTFALL = 0.06
# What an estimate does not see: the context and libraries of CUDA, what kernels need inside, memory that the allocator
# can't use, and a desktop on the same card. An assumption: it was not measured on a GPU.
RESERVE = GIB
LARGEST_COMMON_CARD = 24


@dataclass
class MemoryEstimate:
    """Bytes on the training device, and beside it.

    Attributes:
        phases: phase -> what -> bytes that it needs on the device at the phase's peak.
        waiting: what -> bytes on the waiting device.
        notes: what the figures leave out.
        whole_decoding: bytes that sampling needs where the VAE decodes in one piece; 0 where no samples are drawn. The
            phase "sampling" is that of decoding in tiles, which is what a run does where one piece is too much.
    """

    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    whole_decoding: int = 0

    def total(self, phase: str) -> int:
        """Bytes of a phase."""
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Bytes of the phase that needs the most."""
        return self.total(self.peak_phase)

    def to_dict(self) -> dict[str, object]:
        return {
            "phases": self.phases,
            "waiting": self.waiting,
            "notes": self.notes,
            "whole_decoding": self.whole_decoding,
            "card": smallest_card(self),
        }


def needed(size: int) -> float:
    """GiB that a card must have for a run whose estimated peak is `size` bytes."""
    return (size * (1 + SHORTFALL) + RESERVE) / GIB


def smallest_card(estimate: MemoryEstimate) -> int | None:
    """GB of the smallest card of `CARDS` that the run fits on; None if it is too much for all."""
    return next((card for card in CARDS if needed(estimate.peak) <= card), None)


def card_line(estimate: MemoryEstimate) -> str:
    """The estimate in one line: its peak, the phase that has it, and the card that is needed."""
    start = f"peak {estimate.peak / GIB:.1f} GB, in {estimate.peak_phase}"
    card = smallest_card(estimate)
    if card is not None and card <= LARGEST_COMMON_CARD:
        return f"{start}: fits a {card} GB card"
    if card is None:
        return f"{start}: needs more than an {CARDS[-1]} GB card"
    smaller = CARDS[CARDS.index(card) - 1]
    return f"{start}: needs more than a {smaller} GB card; {_a(card)} {card} GB card has room"


def memory_table(estimate: MemoryEstimate) -> str:
    """The estimate for people, in GiB."""
    rows = [("phase", "what", "GiB")]
    for phase, found in estimate.phases.items():
        rows += [(phase, what, f"{size / GIB:.2f}") for what, size in found.items() if size]
        rows.append((phase, "sum", f"{estimate.total(phase) / GIB:.2f}"))
    rows += [("waiting elsewhere", what, f"{size / GIB:.2f}") for what, size in estimate.waiting.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join([*lines, *(f"note: {note}" for note in estimate.notes)])


def phases_in_markdown(estimates: dict[str, MemoryEstimate]) -> str:
    """A table in Markdown with a row for each estimate: its phases in GiB, and the smallest card for it."""
    phases = list(dict.fromkeys(phase for estimate in estimates.values() for phase in estimate.phases))
    lines = [f"| preset | {' | '.join(phases)} | sampling, VAE in one piece | card |", "|---" * (len(phases) + 3) + "|"]
    for name, estimate in estimates.items():
        sizes = [f"{estimate.total(phase) / GIB:.1f}" if phase in estimate.phases else "" for phase in phases]
        whole = f"{estimate.whole_decoding / GIB:.1f}" if estimate.whole_decoding else ""
        card = smallest_card(estimate)
        lines.append(f"| `{name}` | {' | '.join(sizes)} | {whole} | {f'{card} GB' if card else f'> {CARDS[-1]} GB'} |")
    return "\n".join(lines)


def _a(number: int) -> str:
    return "an" if str(number).startswith("8") else "a"
