"""Fine-tuning runs of one process share their compiled programs."""

import pytest

from tests.raft import shared_steps


@pytest.fixture(autouse=True, scope="session")
def shared_fine_tuning():
    """See `shared_steps.py`."""
    with pytest.MonkeyPatch.context() as patch:
        shared_steps.share(patch)
        yield
