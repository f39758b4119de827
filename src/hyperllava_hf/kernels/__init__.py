"""Kernels that a model may use in place of the eager code that it ships with."""

from .expert_impl import set_expert_impl

__all__ = ["set_expert_impl"]
