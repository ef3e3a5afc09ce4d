"""One small split for the tests of data on the device."""

import pytest
from device_samples import cached, write_split

SIZE = 96


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    return write_split(tmp_path_factory.mktemp("device"), 12)


@pytest.fixture(scope="session")
def cache(split):
    return cached(split, SIZE)
