"""Fixtures for the tests of the back office."""

import pytest
from django.test import Client
from pytest_django import Settings

from tests.backoffice.admin_client import sign_in


@pytest.fixture
def root(client: Client) -> Client:
    """The browser of a superuser."""
    return sign_in(client)


@pytest.fixture
def quick_passwords(settings: Settings) -> None:
    """Use a fast password hash: a secure one takes a third of a second."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
