"""Settings of all processes. Values that differ between machines come from the environment.

`api.py` adds those of the API server, `backoffice.py` those of the back office, the workers and every command.
"""

import os
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import dj_database_url

from config.logs import LOGGING as LOGGING
from exchange.rules import BROKER_ID, SYMBOL
from webhooks.addresses import AddressProfile

# --- From the environment -------------------------------------------------------------------------------------------

DEBUG = os.environ.get("DEBUG", "") == "1"
SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")
DATABASE_URL = os.environ["DATABASE_URL"]
DATABASE_OWNER_URL = os.environ.get("DATABASE_OWNER_URL") or DATABASE_URL  # for `manage.py migrate`
REDIS_URL = os.environ["REDIS_URL"]
DATABASE_POOL_SIZE = int(os.environ.get("DATABASE_POOL_SIZE", "20"))
WEB_PROCESSES = int(os.environ.get("WEB_PROCESSES") or "2")  # with 1, batches need no lock
SECURE_COOKIES = os.environ.get("SECURE_COOKIES", "1") == "1"
CSRF_TRUSTED_ORIGINS = os.environ.get("CSRF_TRUSTED_ORIGINS", "").split()
TRUSTED_PROXIES = int(os.environ.get("TRUSTED_PROXIES") or "0")  # our own proxies, whose X-Forwarded-For is trusted
UNLIMITED_ADDRESSES = [  # exempt from CONNECTIONS_PER_ADDRESS
    ip_network(each.strip()) for each in (os.environ.get("UNLIMITED_ADDRESSES") or "127.0.0.0/8,::1").split(",")
]
BACKOFFICE_URL = os.environ.get("BACKOFFICE_URL", "").rstrip("/")  # target of the API's /admin/; unset: 404
TWO_FACTOR_REQUIRED = os.environ.get("TWO_FACTOR_REQUIRED", "1") == "1"
WEBHOOK_ADDRESSES = AddressProfile(os.environ.get("WEBHOOK_ADDRESSES", "public"))

# --- Limits of the API (contract: "Conventions") --------------------------------------------------------------------

MAX_BODY_BYTES = 64 * 1024
MAX_BATCH_BODY_BYTES = 1024 * 1024
MAX_LARGE_BODIES = 8  # over MAX_BODY_BYTES, in memory at a time, per key; requests without a known key share one limit
MAX_BATCH_ORDERS = 500
MAX_BATCH_ERRORS = 1_000  # in the response to a batch; after that, one error per invalid order
MAX_BODY_CONTAINERS = 10_000  # objects and lists
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 500
BOOK_DEPTH_DEFAULT = 10
BOOK_DEPTH_MAX = 50
RATE_LIMIT_PER_SECOND = 2_000  # per key, over all web processes
RATE_LIMIT_BURST = 4_000
RATE_LIMIT_BYTES_PER_REQUEST = 1_024  # a longer body counts as several requests; the longest order has 416 bytes
RATE_LIMIT_CANCELS_PER_SECOND = 2_000
RATE_LIMIT_CANCELS_BURST = 4_000
RATE_LIMIT_KEYS = 10_000  # in memory; with more, the least recently used key starts with a full bucket
RATE_LIMIT_SYNC_SECONDS = 0.1  # interval of the reports of a web process to the others
RATE_LIMIT_UNKNOWN_PER_SECOND = 50  # requests without a valid key, per client address, over all web processes
RATE_LIMIT_UNKNOWN_BURST = 200
RATE_LIMIT_UNKNOWN_ADDRESSES = 10_000
RATE_LIMIT_DELAY_SECONDS = 0.2  # before a 429 response, to slow down clients that retry immediately
RATE_LIMIT_MAX_DELAYED = 100  # delayed responses at a time, each of which holds a connection
LOG_UNKNOWN_LINES = 5  # per second, for requests without a valid key from one address; the others are counted
LOG_UNKNOWN_ADDRESSES = 100  # counted separately; the others together
KEY_CACHE_SECONDS = 4.0  # the contract: a revoked key stops working within five seconds, in every process
KEY_CACHE_SIZE = 10_000
INVALID_KEY_CACHE_SECONDS = 1.0
INVALID_KEY_CACHE_SIZE = 10_000
WEB_THREADS = 400  # per web process, for all requests outside the fast path
WEB_READ_THREADS = 4  # per web process, for GET: more would contend with the orders for the interpreter
CONNECTIONS_PER_ADDRESS = 256  # to one web process
KEY_REFRESH_SECONDS = 300.0  # a cached key used within this time is refreshed before it expires

# --- Limits of the write path ---------------------------------------------------------------------------------------

MAX_MAKERS_PER_COMMAND = 20_000  # resting orders that one taker may fill; more are rejected
MAX_MAKERS_PER_BATCH = 1_000  # on one side of a book; beyond it, a batch's largest takers are executed separately
MAX_MAKERS_READ_AT_ONCE = 200  # a funded order that reaches more is executed separately
MAX_MAKERS_PER_QUOTE = 1_000  # resting orders that a quote reads
QUOTE_ORDERS_PER_REQUEST = 25  # a quote counts as one request per this many resting orders that it may read
MAX_OPEN_ORDERS = 100_000  # per broker and instrument
SEQUENCER_BATCH = 200  # commands in one transaction, unless a single request has more
SEQUENCER_BATCH_SECONDS = 0.25  # expected duration of a transaction
SEQUENCER_QUEUE_REQUESTS = 256  # waiting in one web process; more are rejected
SEQUENCER_QUEUE_COMMANDS = 4_000  # in all waiting requests; more are rejected
SEQUENCER_DEEP_REQUESTS = 8  # at a time, with orders that fill too many resting orders to share a batch
SWEEP_BATCH = 500  # orders cancelled or expired in one transaction
PRICE_WINDOW = timedelta(minutes=5)
MOVING_AVERAGE_ORDERS = 1_000

# --- Limits of the deliveries ---------------------------------------------------------------------------------------

WEBHOOK_SHARDS = 1  # dispatchers at a time; each endpoint belongs to one of them
WEBHOOK_CONCURRENCY = 256  # attempts at a time, per dispatcher
WEBHOOK_CONCURRENCY_PER_ENDPOINT = 4  # per broker and event, also after a change of the URL
WEBHOOK_WAKE_UPS_QUEUED = 100  # in Valkey; more are not sent
WEBHOOK_RESPONSE_BYTES_READ = 4 * 1024
WEBHOOK_RESPONSE_BYTES_STORED = 1024  # for the back office
WEBHOOK_RESPONSE_RETENTION = timedelta(days=14)  # also for the hourly counts of attempts and failures
WEBHOOK_RETENTION_BATCH = 1_000  # rows deleted in one transaction
WEBHOOK_RETENTION_BATCHES = 200  # transactions of one run, well within TASK_TIME_LIMIT_SECONDS
WEBHOOK_REDELIVERIES = 500  # per operator action

# --- Limits of the back office --------------------------------------------------------------------------------------

LOGIN_FAILURES = 5  # per user and address
LOGIN_FAILURES_OF_ADDRESS = 50  # for any user
LOGIN_LOCKOUT = timedelta(minutes=15)
MAX_CONCURRENT_EXPORTS = 8  # each holds a thread of the back office's server during the download
ONE_TIME_SECRET_AGE = timedelta(minutes=1)  # in which the page that shows a new key must be loaded
KNOWN_DEVICE_AGE = timedelta(days=180)  # since the last login; failures of others do not lock out a known browser
SESSION_COOKIE_AGE = 12 * 60 * 60  # since the login, regardless of activity: `backoffice.sessions`
RECOVERY_CODES = 10  # per user with two-factor login
CLEAN_UP_EVERY_SECONDS = 3_600.0
CLEAN_UP_ROWS = 10_000  # per table and run

# --- Limits of the audit --------------------------------------------------------------------------------------------

RECONCILE_WORK_MEM = "256MB"  # for each step of a check that sorts or hashes
RECONCILE_STATEMENT_TIMEOUT_MS = 600_000  # for each check, which may read every trade
RECONCILE_TASK_SECONDS = 3_600  # for all checks, in a worker
RECONCILE_CHECK_EVERY_SECONDS = 2.0  # interval at which beat looks for runs that wait for a worker or have lost theirs
RECONCILE_MESSAGE_SECONDS = 10.0  # lifetime of a message; beat repeats it

# --- Timeouts -------------------------------------------------------------------------------------------------------

DATABASE_CONNECT_TIMEOUT_SECONDS = 5
DATABASE_POOL_TIMEOUT_SECONDS = 5
DATABASE_RECONNECT_TIMEOUT_SECONDS = 2
DATABASE_RESTART_SECONDS = 1.0  # while PostgreSQL is unavailable for longer, requests are rejected immediately
DATABASE_ATTEMPT_SECONDS = 0.1  # interval of the attempts to connect while it is unavailable
DATABASE_NETWORK_TIMEOUTS = {  # detect a silent host or network, which the server's own timeouts cannot
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
DATABASE_LOCK_TIMEOUT_MS = 2_000
DATABASE_STATEMENT_TIMEOUT_MS = 15_000
DATABASE_IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
IDLE_LOCK_TIMEOUT_MS = 3_000  # after it, a frozen dispatcher or sweep loses its session and the advisory lock in it
MIGRATION_LOCK_TIMEOUT = "500ms"  # orders wait while a migration in a transaction waits for a lock
MIGRATION_RETRY_SECONDS = 3.0
SEQUENCER_BATCH_LOCK_TIMEOUT_SECONDS = 0.25  # for a batch that waits for the batch of another process
SEQUENCER_QUEUE_TIMEOUT_SECONDS = 5.0  # after it, a request is removed from the queue
SEQUENCER_EXECUTION_TIMEOUT_SECONDS = 5.0  # after it, the outcome of a request in execution is unknown
SEQUENCER_DEEP_LOCK_TIMEOUT_MS = 100  # for the process's other batches while it executes a deep order
SEQUENCER_DEEP_TIME_LIMIT_SECONDS = 2.0  # per request with deep orders; the orders left after it are rejected
WATCHDOG_SECONDS = 10  # a process that does not respond for this long is killed
WEB_BODY_TIMEOUT_SECONDS = 30.0  # to receive the whole body
VALKEY_TIMEOUT_SECONDS = 0.5
HEARTBEAT_SECONDS = 1.0
READINESS_CACHE_SECONDS = 1.0  # lifetime of the response of `/readyz`
READINESS_TIMEOUT_SECONDS = 2.0  # after it, a database that has not answered counts as unavailable
EXPIRY_SWEEP_SECONDS = 1.0
EXPIRY_BATCH = 100  # due orders of all books in one transaction; a book with more has one of its own
EXPIRY_ATTEMPTS = 3  # without success; then locked books are left to the next sweep
EXPIRY_RETRY_SECONDS = 0.05  # between attempts
HALT_LOCK_TIMEOUT = "200ms"  # when all instruments are halted: a book locked for longer is left for the end
BARS_EVERY_SECONDS = 5.0
BARS_TIME_LIMIT_SECONDS = 2.0  # per update; the next one continues
REJECTION_RETENTION_EVERY_SECONDS = 3_600.0
KEY_USE_FLUSH_SECONDS = 60.0
TASK_TIME_LIMIT_SECONDS = 30
WORKER_TIMER_SECONDS = 3.0  # interval of the deliveries and expiries that a worker runs without a message
WEBHOOK_TIMEOUT_SECONDS = 5.0  # per attempt, from connecting to the end of the response
WEBHOOK_KEEPALIVE_SECONDS = 1.0  # a receiver may close a connection that was unused for longer, just when it is reused
WEBHOOK_WAKE_UP_TIMEOUT_SECONDS = 0.1  # after it, the wake-up is lost, and beat starts a dispatcher within a second
WEBHOOK_WAKE_UP_INTERVAL_SECONDS = 0.25  # below WEBHOOK_LINGER_SECONDS: a running dispatcher needs none
WEBHOOK_MESSAGE_SECONDS = 10.0
WEBHOOK_DRAIN_EVERY_SECONDS = 1.0
WEBHOOK_RETENTION_EVERY_SECONDS = 60.0
WEBHOOK_LOST_AFTER_SECONDS = 60.0  # a delivery claimed earlier that has no outcome counts as lost
WEBHOOK_LINGER_SECONDS = 0.3  # an idle dispatcher ends after it
WEBHOOK_POLL_SECONDS = 0.03  # interval at which a busy dispatcher looks for deliveries and stores outcomes

# --- Django ---------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.postgres",
    "django.contrib.staticfiles",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "exchange",
    "webhooks",
    "orders",
]

_database: dict[str, Any] = {**dj_database_url.parse(DATABASE_URL, engine="exchange.postgresql")}
_database |= {
    "OPTIONS": {
        **_database.get("OPTIONS", {}),  # from the URL: ?sslmode= and the like
        "connect_timeout": DATABASE_CONNECT_TIMEOUT_SECONDS,
        **DATABASE_NETWORK_TIMEOUTS,
        "pool": {
            "min_size": 1,
            "max_size": DATABASE_POOL_SIZE,
            "timeout": DATABASE_POOL_TIMEOUT_SECONDS,
            "reconnect_timeout": DATABASE_RECONNECT_TIMEOUT_SECONDS,
        },
        "options": (
            f"-c lock_timeout={DATABASE_LOCK_TIMEOUT_MS}"
            f" -c statement_timeout={DATABASE_STATEMENT_TIMEOUT_MS}"
            f" -c idle_in_transaction_session_timeout={DATABASE_IDLE_IN_TRANSACTION_TIMEOUT_MS}"
            " -c jit=off"  # short statements: compiling them costs more than running them
        ),
    },
}
DATABASES = {"default": _database}

TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # serve files from their packages, without collectstatic

SECURE_SSL_REDIRECT = SECURE_COOKIES
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if SECURE_COOKIES else None
SECURE_HSTS_SECONDS = 365 * 24 * 60 * 60 if SECURE_COOKIES else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_COOKIES
SILENCED_SYSTEM_CHECKS = [
    "security.W021",  # HSTS preload binds a whole domain for years, which its owner must decide
]

# --- REST -----------------------------------------------------------------------------------------------------------

REST_FRAMEWORK = {  # `exchange.http.viewsets` applies these in the contract's order
    "DEFAULT_AUTHENTICATION_CLASSES": ["exchange.http.authentication.ApiKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["exchange.http.permissions.HasScope", "exchange.http.permissions.IsOwnBroker"],
    "DEFAULT_THROTTLE_CLASSES": ["exchange.http.throttles.KeyThrottle"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "exchange.http.json_media.NoNegotiation",
    "DEFAULT_PARSER_CLASSES": ["exchange.http.json_media.MsgspecParser"],
    "DEFAULT_RENDERER_CLASSES": ["exchange.http.json_media.MsgspecRenderer"],
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
    "DEFAULT_PAGINATION_CLASS": "exchange.http.paging.KeysetPagination",
    "DEFAULT_SCHEMA_CLASS": "exchange.http.schema.Schema",
    "EXCEPTION_HANDLER": "exchange.http.problems.problem_from_exception",
    "DEFAULT_METADATA_CLASS": None,
    "UNAUTHENTICATED_USER": None,
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Bourse",
    # The pages are served from exchange/static/docs.
    "DESCRIPTION": "A stock exchange: orders, market data, balances, and operator actions.\n\n"
    "Start with the [broker's guide](/static/docs/brokers.md), and [generate a client](/static/docs/clients.md).",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_URLCONF": "config.urls",  # the API's, in every process
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SORT_OPERATIONS": False,  # in the order of the URL map
    "POSTPROCESSING_HOOKS": ["config.openapi.complete"],
    "PATH_CONVERTER_OVERRIDES": {
        "broker_id": {"type": "string", "pattern": f"^{BROKER_ID.pattern}$"},
        "symbol": {"type": "string", "pattern": f"^{SYMBOL.pattern}$"},
        "key_prefix": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
        "id": {"type": "string", "format": "uuid"},
    },
}

# --- Celery ---------------------------------------------------------------------------------------------------------

CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ROUTES = {"webhooks.tasks.deliver": {"queue": "webhooks"}}  # a separate worker: see docs/webhooks.md
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_TIME_LIMIT = TASK_TIME_LIMIT_SECONDS
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # a worker waits for Valkey without a limit
CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_timeout": 5, "socket_connect_timeout": 5}
