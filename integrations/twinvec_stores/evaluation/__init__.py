"""Is hybrid search better on your documents? A store's rankings against judged questions, with sound statistics."""

from twinvec_stores.evaluation.evaluate import Evaluation, WayResult, evaluate
from twinvec_stores.evaluation.html import to_html
from twinvec_stores.evaluation.losses import Loss, Place, losses
from twinvec_stores.evaluation.making import ChatModel, MadeQuestion, MadeQuestions, make_questions
from twinvec_stores.evaluation.mteb import MtebEncoder
from twinvec_stores.evaluation.questions import Questions
from twinvec_stores.evaluation.reading import read_questions
from twinvec_stores.evaluation.statistics import Comparison, compare
from twinvec_stores.evaluation.tuning import Trial, Tuning, split, tune

__all__ = [
    "ChatModel",
    "Comparison",
    "Evaluation",
    "Loss",
    "MadeQuestion",
    "MadeQuestions",
    "MtebEncoder",
    "Place",
    "Questions",
    "Trial",
    "Tuning",
    "WayResult",
    "compare",
    "evaluate",
    "losses",
    "make_questions",
    "read_questions",
    "split",
    "to_html",
    "tune",
]
