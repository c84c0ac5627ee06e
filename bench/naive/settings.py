"""The product's settings, so that pool, timeouts and tables are the same, without its middleware and URLs."""

from config.settings.api import *  # noqa: F403

globals().update(ROOT_URLCONF="bench.naive.urls", MIDDLEWARE=[])
