"""Brokers: what they own, what moves in and out, their keys, and how they are stopped."""

from typing import Any
from uuid import UUID

from django.contrib import admin

from backoffice.lists import Column, Way
from backoffice.pages import Pages
from exchange.models import ApiKey, Broker, Transfer
from exchange.paging import Keyset


@admin.register(Broker)
class BrokerPages(Pages):
    columns = (
        Column("Broker", "id"),
        Column("Status", "status"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Broker.objects.all(), Keyset(("id", str)))


@admin.register(Transfer)
class TransferPages(Pages):
    columns = (
        Column("Transfer", "id"),
        Column("Broker", "broker_id"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(Transfer.objects.all(), Keyset(("-id", UUID)))


@admin.register(ApiKey)
class ApiKeyPages(Pages):
    columns = (
        Column("Key", "prefix"),
        Column("Broker", "broker_id"),
    )

    def way(self, asked: dict[str, Any]) -> Way:
        return Way(ApiKey.objects.all(), Keyset(("prefix", str)))
