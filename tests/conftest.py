"""One thread, and property tests that repeat themselves exactly."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("exact", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("exact")


@pytest.fixture(autouse=True)
def seeded():
    """Tests draw from the global generator in a known state; the package itself never draws from it."""
    torch.manual_seed(0)
