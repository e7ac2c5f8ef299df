"""Every question by the letter that it has on the command line. A new one is one file and one line here."""

from modules.benchmark.stability.factor_ranks import FactorRanks
from modules.benchmark.stability.factored_second import FactoredSecond
from modules.benchmark.stability.kourkoutas import Kourkoutas
from modules.benchmark.stability.orthograd import OrthoGrad
from modules.benchmark.stability.output_variance import OutputVariance
from modules.benchmark.stability.Question import Question
from modules.benchmark.stability.scaled_eps import ScaledEps
from modules.benchmark.stability.signs import Signs

QUESTIONS: dict[str, Question] = {
    kind.letter: kind()
    for kind in (Signs, FactoredSecond, Kourkoutas, OrthoGrad, ScaledEps, OutputVariance, FactorRanks)
}
