"""Trains what the questions want, and tells what came of it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.pool import answer
from benchmarks.stability.analysis import RULE
from benchmarks.stability.registry import QUESTIONS
from benchmarks.stability.Results import Results
from benchmarks.stability.training import train_trial
from benchmarks.stability.Trial import Measured, Trial

Train = Callable[[Trial], Measured]


def run(
    letters: Sequence[str],
    seeds: Sequence[int],
    results: Results,
    workers: int,
    told: Callable[[Trial, Measured], None],
    quick: bool = False,
    until: float | None = None,
    train: Train = train_trial,
) -> bool:
    """Trains what is not in the results yet; every question with the first seed, then with the others.

    Args:
        letters: of the questions.
        seeds: of start values, batches, noise and timesteps.
        results: of what was trained before; takes each new training at once.
        workers: how many trainings run at a time, as `benchmarks.pool.answer` takes it.
        told: gets each training and what came of it.
        quick: a few short trainings, which show that everything works and nothing else.
        until: `time.monotonic()` from which no further training begins; None: never.
        train: a function that can be pickled.

    Returns:
        whether all questions are answered.
    """
    wanted = [
        partial(QUESTIONS[letter].wanted, results, case, seed, quick)
        for seed in seeds
        for letter in letters
        for case in QUESTIONS[letter].cases(quick)
    ]

    def take(trial: Trial, measured: Measured) -> None:
        results.add(trial, measured)
        told(trial, measured)

    return answer(wanted, train, take, workers, until)


def report(results: Results, letters: Sequence[str], quick: bool = False) -> str:
    """Markdown: a section for each question of which something was trained."""
    sections = ["Steps are too few to mean anything: a quick measurement shows that everything works."] if quick else []
    sections.append(RULE)
    for letter in letters:
        found = QUESTIONS[letter].report(results)
        if found:
            first, *sentences = found
            sections += [f"## {letter}. {QUESTIONS[letter].title}", first, "\n".join(f"- {text}" for text in sentences)]
    return "\n\n".join(section for section in sections if section)


def draw(results: Results, letters: Sequence[str], folder: Path) -> list[Path]:
    """Writes a picture for each question of which something was trained; returns their paths."""
    written = []
    for letter in letters:
        question = QUESTIONS[letter]
        if any(results.seeds(letter, case) for case in question.cases()):
            path = folder / f"stability_{question.name}.png"
            question.draw(results, path)
            written.append(path)
    return written
