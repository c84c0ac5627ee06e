"""What comes in about subscriptions."""

from typing import Any

from django.conf import settings
from rest_framework import serializers

from exchange.fields import MAX_ERRORS, Choice, StrictSerializer, Text, WireField
from exchange.rules import BROKER_ID
from webhooks.addresses import URL, BadUrl, check_url
from webhooks.models import MAX_URL_LENGTH, EventType


class Url(WireField):
    """Where webhooks may be sent, as far as the text tells; taken as it is."""

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
        except BadUrl as refusal:
            raise serializers.ValidationError(refusal.detail, refusal.code) from refusal
        return data

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "format": "uri", "maxLength": MAX_URL_LENGTH, "pattern": f"^{_unnamed(URL.pattern)}$"}


def _unnamed(pattern: str) -> str:
    """A pattern without Python's names for its groups, which JSON Schema's dialect does not know."""
    return pattern.replace("(?P<scheme>", "(").replace("(?P<host>", "(").replace("(?P<port>", "(")


class EventTypes(serializers.ListField):
    """Types of events, at least one; of a list full of nonsense no more is looked at than the answer names."""

    default_error_messages = {"not_a_list": "Must be a list.", "min_length": "Must name at least one event."}

    def __init__(self) -> None:
        super().__init__(child=Choice(EventType), min_length=1)

    def run_child_validation(self, data: list[Any]) -> list[EventType]:
        types: list[EventType] = []
        errors: dict[str, Any] = {}
        for index, word in enumerate(data):
            try:
                types.append(self.child.run_validation(word))
            except serializers.ValidationError as refusal:
                errors[str(index)] = refusal.detail
            if len(errors) == MAX_ERRORS:
                break
        if errors:
            raise serializers.ValidationError(errors)
        return types


class SubscribeForm(StrictSerializer):
    broker_id = Text(BROKER_ID)
    url = Url()
    events = EventTypes()


class WebhooksQuery(StrictSerializer):
    broker_id = Text(BROKER_ID)
