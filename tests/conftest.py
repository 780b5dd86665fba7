"""What every test shares: one thread, so that times and last bits do not depend on the machine."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)
