"""The product's settings, with the same pool, timeouts and tables, without its middleware and URLs."""

from config.settings.api import *  # noqa: F403

globals().update(ROOT_URLCONF="bench.naive.urls", MIDDLEWARE=[])
