"""Pictures and a processor for the tests of this folder."""

from pathlib import Path

import pytest

from hyperllava_hf.processing import HyperLlavaProcessor
from tests.data.builders import save_pictures
from tests.processing.builders import build_small_processor


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures."""
    return save_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def processor() -> HyperLlavaProcessor:
    """A processor with Vicuna's kind of tokenizer and four tokens an image."""
    return build_small_processor("legacy_llama")
