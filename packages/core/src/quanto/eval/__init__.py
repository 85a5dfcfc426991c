# SPDX-License-Identifier: Apache-2.0
"""Measuring what quantization costs in quality; each result says by which convention."""

from .accuracy import Accuracy, accuracy, agreement
from .divergence import Divergence, divergence
from .embeddings import Retrieval, Similarity, retrieval, similarity, spearman
from .examples import read_examples
from .perplexity import Perplexity, perplexity
from .signal import LayerSignal, SignalReport, decibel, sqnr
from .tasks import Task, measure
from .word_errors import WordErrors, plain_words, word_error_rate
from .word_perplexity import word_perplexity

__all__ = [
    "Accuracy",
    "Divergence",
    "LayerSignal",
    "Perplexity",
    "Retrieval",
    "SignalReport",
    "Similarity",
    "Task",
    "WordErrors",
    "accuracy",
    "agreement",
    "decibel",
    "divergence",
    "measure",
    "perplexity",
    "plain_words",
    "read_examples",
    "retrieval",
    "similarity",
    "spearman",
    "sqnr",
    "word_error_rate",
    "word_perplexity",
]
