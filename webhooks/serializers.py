"""Serializers of requests about subscriptions."""

from typing import Any

from django.conf import settings
from rest_framework import serializers

from exchange.http.fields import Choice, StrictField, StrictList, StrictSerializer, Text
from exchange.rules import BROKER_ID
from webhooks.addresses import URL, InvalidUrl, check_url
from webhooks.models import MAX_URL_LENGTH, EventType


class Url(StrictField):
    """Webhook URL, stored as sent. A host name is checked on connection, not here."""

    default_error_messages = {
        "invalid": "Must be a string.",
        "max_length": f"May have at most {MAX_URL_LENGTH} characters.",
    }

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        if len(data) > MAX_URL_LENGTH:
            self.fail("max_length")
        try:
            check_url(data, settings.WEBHOOK_ADDRESSES)
        except InvalidUrl as refusal:
            raise serializers.ValidationError(refusal.detail, refusal.code) from refusal
        return data

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "uri", "maxLength": MAX_URL_LENGTH, "pattern": f"^{_unnamed(URL.pattern)}$"}


def _unnamed(pattern: str) -> str:
    """Return the pattern without Python's named groups, which JSON Schema lacks."""
    return pattern.replace("(?P<scheme>", "(").replace("(?P<host>", "(").replace("(?P<port>", "(")


class SubscribeSerializer(StrictSerializer):
    """A subscription to events. Another URL for the same event replaces the first."""

    broker_id = Text(BROKER_ID)
    url = Url()
    events = StrictList(child=Choice(EventType), min_length=1)


class WebhooksQuerySerializer(StrictSerializer):
    """Query of a broker's subscriptions."""

    broker_id = Text(BROKER_ID)
