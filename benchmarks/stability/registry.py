"""Every question by the letter that it has on the command line. A new one is one file and one line here."""

from benchmarks.stability.factor_ranks import FactorRanks
from benchmarks.stability.factored_second import FactoredSecond
from benchmarks.stability.kourkoutas import Kourkoutas
from benchmarks.stability.orthograd import OrthoGrad
from benchmarks.stability.output_variance import OutputVariance
from benchmarks.stability.Question import Question
from benchmarks.stability.scaled_eps import ScaledEps
from benchmarks.stability.signs import Signs

QUESTIONS: dict[str, Question] = {
    kind.letter: kind()
    for kind in (Signs, FactoredSecond, Kourkoutas, OrthoGrad, ScaledEps, OutputVariance, FactorRanks)
}
