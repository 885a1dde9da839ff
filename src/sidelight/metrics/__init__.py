"""Metrics, one module per task. They score files and arrays, and never import a model."""

from sidelight.metrics.qvhighlights import evaluate_qvhighlights

__all__ = ["evaluate_qvhighlights"]
