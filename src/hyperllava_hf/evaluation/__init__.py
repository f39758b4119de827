"""Evaluation of HyperLLaVA models: digit scenes, their questions, and how answers are scored."""
