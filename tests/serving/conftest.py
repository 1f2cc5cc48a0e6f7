"""A server of small digits, for the tests of a module."""

import pytest
from servers import client, serving, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def http(model):
    with serving(model) as (address, _), client(address) as made:
        yield made
