"""The OpenAPI document beyond the code: descriptions of fields by name, examples, and the events.

`complete` is a hook of drf-spectacular. It fails for a field without a description.
"""

from typing import Any

from exchange.http.schema import JSONSchema, struct_schemas
from orders.matching.events import OrderClosed, TradeExecuted
from webhooks.models import EventType

SERVERS = [{"url": "/", "description": "The exchange that serves this document."}]
TAGS = [  # in the order of use; `Schema.get_tags` puts the actions of operators last
    {"name": "orders", "description": "Place, read and cancel your orders, and read your trades."},
    {"name": "stocks", "description": "Market data: instruments, prices, books, quotes and trades."},
    {"name": "brokers", "description": "Your cash and shares."},
    {"name": "webhooks", "description": "Subscriptions to events of your orders."},
    {"name": "health", "description": "State of the exchange. No key needed."},
    {"name": "operators", "description": "Actions of the exchange's operators."},
]
METHODS = ["post", "get", "patch", "delete"]

# By the name of a property or parameter, or by `Component.property` or `operation.parameter` where the name means
# something else there.
DESCRIPTIONS = {
    "after": "Only trades executed after this time.",
    "all": "`true` cancels all working orders, instead of those of a `symbol` or `side`.",
    "api_key": "The key, shown only in this response.",
    "asks": "Levels of the asks, lowest price first.",
    "available_cash": "`cash_balance` - `reserved_cash`: cash for new bids.",
    "available_quantity": "`quantity` - `reserved_quantity`: shares for new asks.",
    "average_price": "Mean price of the order's trades; null without trades.",
    "beat_age_seconds": "Seconds since the scheduler's last heartbeat; null if unknown.",
    "before": "Only trades executed before this time.",
    "best_ask": "Lowest price of the working asks; null if there are none.",
    "best_bid": "Highest price of the working bids; null if there are none.",
    "bids": "Levels of the bids, highest price first.",
    "broker_id": "Id of the broker. A broker's key acts for that broker only.",
    "brokers": "Brokers of this page.",
    "cancel_orders": "True to cancel the broker's working orders too.",
    "cancel_reason": "Reason of the cancel; null if the order was not cancelled.",
    "cancelled": "Number of cancelled orders.",
    "cancelled_at": "Time of the cancel; null if the order was not cancelled.",
    "cancelled_orders": "Number of orders cancelled by this request.",
    "cash": "Cash to deposit (positive) or withdraw (negative); null for a transfer of shares.",
    "cash_balance": "Total cash, including the reserved part.",
    "client_order_id": "The broker's own id of the order, unique forever. A repeated request returns the first order.",
    "code": "Stable code of the error, for programs.",
    "created_after": "Only orders created after this time.",
    "created_at": "Time of creation.",
    "created_before": "Only orders created before this time.",
    "current_price": "Volume-weighted mean price of the trades in the window, else the last price; null without any.",
    "cursor": "`next_cursor` of the previous page; absent for the first page.",
    "data": "The event's details.",
    "database": "True if the database answers and is migrated. Orders need it.",
    "depth": "Number of levels per side.",
    "detail": "Sentence that says what is wrong and what to do.",
    "document_number": "Document of the investor that owns the order: CPF, CNPJ or passport, without punctuation.",
    "error": "The problem of a rejected order.",
    "errors": "The invalid fields, if any.",
    "event": "Type of the event.",
    "events": "Types of events to send to the URL.",
    "executed_at": "Time of the trade.",
    "expired_at": "Time of the expiry, equal to `expires_at`; null if the order has not expired.",
    "expires_at": "End of the order's validity, in the future; required with `gtd`, otherwise absent or null.",
    "field": "Name of the field or parameter, dotted in nested objects: `initial_holdings.0.quantity`.",
    "fillable_quantity": "Quantity that would be filled; a lower bound beyond 1,000 resting orders.",
    "filled_quantity": "Traded quantity.",
    "holdings": "Shares of each instrument, by symbol.",
    "initial_cash": "Cash that the broker starts with.",
    "initial_holdings": "Shares that the broker starts with. Unlisted symbols are listed.",
    "keys": "Keys of this page.",
    "last_price": "Price of the last trade; null if there is none.",
    "last_trade_at": "Time of the last trade; null if there is none.",
    "levels": "The trades that the order would make, by price, best first.",
    "limit": "Number of rows per page.",
    "lot_size": "Quantities must be multiples of this.",
    "mid": "Mean of `best_bid` and `best_ask`; null if a side is empty.",
    "moving_average": "Mean limit price of the bids and asks of the window (the latest 1,000); null without any.",
    "name": "Name for people; empty if none was given.",
    "next_cursor": "`cursor` of the next page; null on the last page.",
    "order": "The accepted order.",
    "order_count": "Number of orders at this price.",
    "order_id": "Id of the order.",
    "orders": "Orders of this page.",
    "prefix": "Public part of the key, after `brs_`, which identifies it.",
    "price": "Limit price, a positive multiple of the instrument's `tick_size`; null for a market order.",
    "pricing": "Price of a trade between two limit orders: the ask's (`seller`) or the resting order's (`maker`).",
    "quantity": "Number of shares, a multiple of the instrument's `lot_size`.",
    "reason": "Reason, recorded in the audit log.",
    "reference": "Unique id of the transfer, chosen by the operator. A repeated request returns the first transfer.",
    "remaining_quantity": "`quantity` - `filled_quantity`, also after a cancel or an expiry.",
    "request_id": "Id of the request, as in `X-Request-Id`.",
    "reserved_cash": "Cash that working bids hold.",
    "reserved_quantity": "Shares that working asks hold.",
    "results": "One result per order, in the order of the request.",
    "revoked_at": "Time of the revocation; null if the key is not revoked.",
    "scopes": "Permissions of the key. `trade` includes `read`.",
    "sequence": "Number of changes of this book; a higher one is later.",
    "side": "`bid` buys, `ask` sells.",
    "snapshot_at": "Time of the snapshot.",
    "spread": "Lowest ask - highest bid; null if a side is empty.",
    "status": "State of the order. The last three are final: `filled`, `cancelled`, `expired`.",
    "stocks": "Instruments of this page.",
    "symbol": "Symbol of the instrument.",
    "taker_side": "Side of the arriving order.",
    "tick_size": "Prices must be multiples of this.",
    "time_in_force": "Validity. Default: `gtd` for a limit order with `expires_at`, `ioc` for a market order.",
    "timestamp": "Time of the trade, cancel or expiry.",
    "title": "Text of the HTTP status.",
    "total": "Cost or proceeds of the `fillable_quantity`.",
    "total_quantity": "Sum of the orders' remaining quantities.",
    "trade_id": "Id of the trade, the same for both sides.",
    "trades": "Trades of this page.",
    "trades_in_window": "Number of trades in the window.",
    "transfer_id": "Id of the transfer.",
    "transfers": "Transfers of this page.",
    "type": "Limit orders have a price and may rest in the book; market orders trade immediately or not at all.",
    "updated_at": "Time of the last change of the balance.",
    "url": "Address that receives the events.",
    "valkey": "True if Valkey answers. Orders do not need it.",
    "webhook_id": "Id of the subscription. Another URL for the same event keeps it.",
    "webhooks": "Subscriptions, one per event.",
    "window": "Length of the window: `5m` is five minutes.",
    "worker_age_seconds": "Seconds since the worker's last heartbeat; null if unknown.",
}

_TRADES = ("BrokerTrade", "OrderTrade", "TapeTrade", "TradeExecuted")

DESCRIPTIONS |= {f"{trade}.price": "Price of the trade." for trade in _TRADES}
DESCRIPTIONS |= {f"{trade}.quantity": "Traded quantity." for trade in _TRADES}
DESCRIPTIONS |= {
    "BrokerBody.status": "Status of the broker. A suspended broker cannot place orders.",
    "BrokerStanding.status": "Status of the broker. A suspended broker cannot place orders.",
    "CreateKeyForm.expires_at": "End of the key's validity; absent or null for a key without an end.",
    "CreateKeyForm.scopes": "Permissions of the key (default: `trade`). `trade` includes `read`.",
    "CreateTransferForm.quantity": "Shares to deposit (positive) or withdraw (negative), sent with `symbol`.",
    "CreateTransferForm.symbol": "Instrument of the shares, sent with `quantity` instead of `cash`.",
    "HealthBody.status": "`ok`.",
    "HoldingBody.quantity": "Total shares, including the reserved ones.",
    "InitialHoldingForm.quantity": "Number of shares.",
    "InstrumentBody.status": "Status of the instrument. A halted instrument does not trade.",
    "IssuedKeyBody.expires_at": "End of the key's validity; null for a key without an end.",
    "KeyBody.expires_at": "End of the key's validity; null for a key without an end.",
    "Level.price": "Price of the level.",
    "ListInstrumentForm.name": "Name for people.",
    "ListInstrumentForm.pricing": "Price of a trade between two limit orders (default: `seller`).",
    "OrderBody.expires_at": "End of the order's validity; null for `gtc`, `ioc` and `fok`.",
    "OrderBody.trades": "Trades of the order, oldest first.",
    "OrderResult.status": "Status that the order would have got in a request of its own.",
    "OrderSummary.expires_at": "End of the order's validity; null for `gtc`, `ioc` and `fok`.",
    "PlaceOrdersForm.orders": "The orders. Each stands alone.",
    "Problem.status": "The HTTP status.",
    "Problem.type": "Always `about:blank`: see `code`.",
    "Quote.average_price": "Mean price of these trades; null if nothing can be filled.",
    "Quote.quantity": "Requested quantity.",
    "QuoteLevel.price": "Price of the trades.",
    "QuoteLevel.quantity": "Quantity traded at this price.",
    "TradeExecuted.remaining_quantity": "Remaining quantity of the order right after the trade.",
    "TradeExecuted.status": "Status of the order right after the trade.",
    "TransferBody.quantity": "Deposited (positive) or withdrawn (negative) shares; null for a transfer of cash.",
    "TransferBody.symbol": "Instrument of the shares; null for a transfer of cash.",
    "cancel_orders.broker_id": "Required with an operator's key.",
    "cancel_orders.side": "Only orders of this side.",
    "cancel_orders.symbol": "Only orders in this instrument.",
    "find_order.broker_id": "Required with an operator's key.",
    "get_quote.quantity": "Quantity of the market order.",
    "get_quote.side": "Side of the market order.",
    "list_fills.symbol": "Only trades in this instrument.",
    "list_orders.document_number": "Only orders of this investor.",
    "list_orders.side": "Only orders of this side.",
    "list_orders.status": "Only orders with this status.",
    "list_orders.symbol": "Only orders in this instrument.",
    "revoke_key.prefix": "`prefix` of the key.",
    "unsubscribe.webhook_id": "Id of the subscription.",
}

# The examples work with the demo brokers of `make run`, in the order of the document.
PARAMETERS = {  # required ones by name, unless they are here by operation and name, as the others
    "broker_id": "broker-1",
    "cancel_orders.symbol": "AAPL",
    "client_order_id": "2026-02-16-000001",
    "delete_stock.symbol": "VALE3",
    "quantity": 100,
    "side": "bid",
    "symbol": "AAPL",
}

_OF_BROKER_1 = {"broker_id": "broker-1", "document_number": "12345678900", "symbol": "AAPL"}
_BID = _OF_BROKER_1 | {"side": "bid", "price": "150.25", "quantity": 100, "time_in_force": "gtc"}
_ASK = _OF_BROKER_1 | {"side": "ask", "price": "155.00", "quantity": 100}
BODIES: dict[str, dict[str, JSONSchema]] = {  # by component
    "PlaceOrderForm": {
        "Good till cancelled": _BID | {"client_order_id": "2026-02-16-000001"},
        "Good till date": _ASK | {"expires_at": "2099-12-31T21:00:00Z", "client_order_id": "2026-02-16-000002"},
        "Day order": _ASK | {"time_in_force": "day", "client_order_id": "2026-02-16-000003"},
        "Fill or kill": _ASK | {"time_in_force": "fok", "client_order_id": "2026-02-16-000004"},
        "Market order": _OF_BROKER_1
        | {"type": "market", "side": "bid", "quantity": 10, "client_order_id": "2026-02-16-000005"},
    },
    "PlaceOrdersForm": {
        "Two orders": {
            "orders": [
                _BID | {"client_order_id": "2026-02-16-000006"},
                _ASK | {"time_in_force": "day", "client_order_id": "2026-02-16-000007"},
            ]
        },
    },
    "SubscribeForm": {
        "All events": {
            "broker_id": "broker-1",
            "url": "https://broker.example/hooks",
            "events": ["trade.executed", "order.expired", "order.cancelled"],
        },
    },
    "CreateBrokerForm": {
        "With cash and shares": {
            "broker_id": "broker-3",
            "initial_cash": "1000000.00",
            "initial_holdings": [{"symbol": "AAPL", "quantity": 1000}],
        },
    },
    "SuspendForm": {"Cancel all orders": {"reason": "Risk limit exceeded", "cancel_orders": True}},
    "ReasonForm": {"With a reason": {"reason": "Resolved with the broker"}},
    "CreateTransferForm": {
        "Deposit of cash": {"reference": "2026-02-16-1", "cash": "50000.00", "reason": "Bank transfer"},
        "Withdrawal of shares": {"reference": "2026-02-16-2", "symbol": "AAPL", "quantity": -100, "reason": "Custody"},
    },
    "CreateKeyForm": {"Key to read": {"name": "reports", "scopes": ["read"], "expires_at": "2099-12-31T21:00:00Z"}},
    "ListInstrumentForm": {
        "With its rules": {
            "symbol": "VALE3",
            "name": "Vale",
            "tick_size": "0.01",
            "lot_size": 100,
            "pricing": "seller",
        },
    },
}

_ORDER = {"order_id": "019c6a3e-5d10-7c44-9a3b-2f6f0c1e8d55", "symbol": "AAPL", "side": "bid", "price": 150.25}
EVENTS: dict[EventType, tuple[str, type, dict[str, Any]]] = {  # description, data and an example of it
    EventType.TRADE_EXECUTED: (
        "An order traded. Sent once per trade and side, with the order's state right after the trade.",
        TradeExecuted,
        {
            "trade_id": "019c6a3e-5d11-7a02-8c5e-4b7d9f3a6e10",
            **_ORDER,
            "quantity": 500,
            "status": "partially_filled",
            "remaining_quantity": 500,
        },
    ),
    EventType.ORDER_EXPIRED: (
        "A resting order expired, because its `expires_at` passed.",
        OrderClosed,
        {**_ORDER, "quantity": 1000, "filled_quantity": 500, "remaining_quantity": 500, "status": "expired"},
    ),
    EventType.ORDER_CANCELLED: (
        "A resting order was cancelled by its broker, an operator or a suspension.",
        OrderClosed,
        {**_ORDER, "quantity": 1000, "filled_quantity": 0, "remaining_quantity": 1000, "status": "cancelled"},
    ),
}
DELIVERY_HEADERS = {
    "X-Webhook-Id": ("Id of the subscription.", {"type": "string", "format": "uuid"}),
    "X-Event-Type": ("Type of the event.", {"$ref": "#/components/schemas/EventType"}),
    "X-Delivery-Id": ("Id of this delivery; no two deliveries share one.", {"type": "string", "format": "uuid"}),
    "X-Event-Sequence": (
        "Number of the event among all events of the broker: 1, 2, 3, … without gaps.",
        {"type": "integer", "format": "int64"},
    ),
}


def complete(result: JSONSchema, **_: Any) -> JSONSchema:
    """Add the events, and the description of every property and parameter (a hook of drf-spectacular)."""
    schemas = result.setdefault("components", {}).setdefault("schemas", {})  # none in a site without the API
    for event, (description, data, _example) in EVENTS.items():
        schemas |= struct_schemas(data) | {_component(event): _event_schema(event, description, data)}
    result["components"]["schemas"] = dict(sorted(schemas.items()))
    result |= {"servers": SERVERS, "tags": TAGS}
    result["webhooks"] = {event.value: {"post": _delivery(event)} for event in EVENTS}
    for component, schema in schemas.items():
        for name, inner in schema.get("properties", {}).items():
            inner.setdefault("description", _description(component, name))
    result["paths"] = {path: _in_order(item) for path, item in sorted(result["paths"].items(), key=_tag_number)}
    for operation in (operation for item in result["paths"].values() for operation in item.values()):
        _complete_operation(operation)
    return result


def _tag_number(path: tuple[str, JSONSchema]) -> int:
    """Return the place of a path among the tags, by its first operation in their order."""
    names = [tag["name"] for tag in TAGS]
    return min(names.index(tag) for operation in path[1].values() for tag in operation["tags"])


def _in_order(item: JSONSchema) -> JSONSchema:
    """Sort the operations of a path. The order of drf-spectacular differs between processes."""
    return dict(sorted(item.items(), key=lambda operation: METHODS.index(operation[0])))


def _complete_operation(operation: JSONSchema) -> None:
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        parameter["description"] = _description(operation["operationId"], name)
        own = f"{operation['operationId']}.{name}"
        key = name if parameter.get("required") and own not in PARAMETERS else own
        if key in PARAMETERS:
            parameter["example"] = PARAMETERS[key]
    for media in operation.get("requestBody", {"content": {}})["content"].values():
        examples = BODIES[media["schema"]["$ref"].rpartition("/")[2]]
        media["examples"] = {summary: {"value": value} for summary, value in examples.items()}


def _description(owner: str, name: str) -> str:
    return DESCRIPTIONS.get(f"{owner}.{name}") or DESCRIPTIONS[name]


def _component(event: EventType) -> str:
    """Return the component name of an event: `TradeExecutedEvent`."""
    return "".join(word.title() for word in event.value.split(".")) + "Event"


def _event_schema(event: EventType, description: str, data: type) -> JSONSchema:
    properties = {
        "event": {"type": "string", "const": event.value},
        "timestamp": {"type": "string", "format": "date-time"},
        "data": {"$ref": f"#/components/schemas/{data.__name__}"},
    }
    return {"type": "object", "description": description, "properties": properties, "required": [*properties]}


def _delivery(event: EventType) -> JSONSchema:
    """Return the operation that a receiver of this event implements."""
    description, _data, example = EVENTS[event]
    return {
        "summary": f"Receive {event.value}",
        "description": f"{description} See [webhooks](/static/docs/webhooks.md).",
        "operationId": "receive_" + event.value.replace(".", "_"),
        "tags": ["events"],  # generators write one class per tag, and would overwrite that of the subscriptions
        "parameters": [
            {"name": name, "in": "header", "required": True, "description": description, "schema": schema}
            for name, (description, schema) in DELIVERY_HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": f"#/components/schemas/{_component(event)}"},
                    "example": {"event": event.value, "timestamp": "2026-02-16T16:29:00.123456Z", "data": example},
                }
            },
        },
        "responses": {
            "2XX": {"description": "Received. Redirects are not followed; any other status is a failed delivery."}
        },
    }
