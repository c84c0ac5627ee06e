"""Where the back office keeps its sessions: Django's table, with an end that does not move.

Django counts a session's age from the last time something was written into it. Here it counts from the login, so that
a browser that is never closed asks for the password again within `SESSION_COOKIE_AGE`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import db
from django.contrib.sessions.base_session import AbstractBaseSession

BEGAN = "began"


class SessionStore(db.SessionStore):
    def cycle_key(self) -> None:
        """A login begins it again; a second factor or a new password, which give it a new key too, do not."""
        if SESSION_KEY not in self:
            self.pop(BEGAN, None)
        super().cycle_key()

    def create_model_instance(self, data: dict[str, Any]) -> AbstractBaseSession:
        began = data.setdefault(BEGAN, datetime.now(UTC).timestamp())
        row = super().create_model_instance(data)
        row.expire_date = datetime.fromtimestamp(began, UTC) + timedelta(seconds=settings.SESSION_COOKIE_AGE)
        return row
