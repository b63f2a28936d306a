"""A whole data set through many methods: rows on disk, tables with intervals, figures."""

from captum_clustered.evaluation.job import (
    Outcome,
    Settings,
    evaluate,
    listed,
    numbers,
    summarize,
)

__all__ = ["Outcome", "Settings", "evaluate", "listed", "numbers", "summarize"]
