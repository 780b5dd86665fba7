"""What every test shares: one thread, so that times and last bits do not depend on the machine.

And `--full`: the whole product of the laws in place of the default set, with the tests that are
marked `full`. A nightly run has it; a default run must notice the same faults (tests/faults).
"""

import gc

import pytest

pytest_plugins = ["tests.summary"]


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="the whole product of the laws, and the tests that are marked `full`",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "full: deselected without --full")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    marked = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=marked)
    items[:] = [item for item in items if item not in marked]


def pytest_collection_finish(session):
    """Spares the garbage collector what lives as long as the session: a tenth of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch  # in workers alone: the process that hands out the tests has no use for it

    torch.set_num_threads(1)
