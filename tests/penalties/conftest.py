"""What several tests of penalties ask for."""

from __future__ import annotations

import pytest
from critics import taken_apart


@pytest.fixture(params=["apart", "together"])
def others(request):
    """Gradients of samples without a penalty in the reverse pass, or with the others', whatever takes less memory."""
    with taken_apart(request.param == "apart"):
        yield request.param
