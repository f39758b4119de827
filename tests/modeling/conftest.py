"""Fixtures of the scope table: one model a mode, built once a file."""

import logging

import pytest

from tests.modeling.scope_modes import MODES
from tests.modeling.tiny_models import tiny_model


@pytest.fixture(scope="module")
def models():
    return {name: tiny_model(visual_expert="both", **fields) for name, fields in MODES.items()}


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture
def model(models, mode):
    return models[mode]


@pytest.fixture
def warnings_of(caplog):
    """Messages of our loggers; warnings said once are forgotten before."""
    logging.Logger.warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [r.getMessage() for r in caplog.records if "hyperllava" in r.name]
