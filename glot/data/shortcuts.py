"""What a data set gives away for free: accuracies of rules that understand nothing, learned on the training rows."""

from collections.abc import Callable

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.tree import DecisionTreeClassifier

from glot.types import Examples


def _word_counts(texts: list[str]) -> np.ndarray:
    return np.array([[len(text.split())] for text in texts])


def _counted(ngram: int) -> Pipeline:
    words = CountVectorizer(ngram_range=(ngram, ngram), token_pattern=r"\S+")
    return make_pipeline(words, LogisticRegression(max_iter=2000))


SHORTCUTS: dict[str, Callable[[], Pipeline]] = {
    "majority class": lambda: make_pipeline(FunctionTransformer(_word_counts), DummyClassifier()),
    "length alone": lambda: make_pipeline(FunctionTransformer(_word_counts), DecisionTreeClassifier(max_depth=2, random_state=0)),
    "bag of words": lambda: _counted(1),
    "bigrams": lambda: _counted(2),
}
"""Name -> a scikit-learn classifier of texts. Length counts blank-separated words and may use two cuts."""


def score_shortcuts(train: Examples, evaluation: Examples) -> dict[str, float]:
    """Accuracy of each shortcut on single-text classification data."""
    scores = {}
    for name, build in SHORTCUTS.items():
        rule = build().fit(train.columns[0], train.labels)
        scores[name] = float(rule.score(evaluation.columns[0], evaluation.labels))
    return scores
