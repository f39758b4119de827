"""Processors shared by the tests of this folder."""

import pytest

from tests.processing.builders import HyperLlavaProcessor, build_small_processor


@pytest.fixture
def processor() -> HyperLlavaProcessor:
    """One id a word, four tokens an image."""
    return build_small_processor()
