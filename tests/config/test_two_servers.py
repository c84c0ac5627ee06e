"""The API and the back office are separate sites: neither has the other's paths, and the API has no sessions."""

import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection

import pytest
from django.db import connection, transaction
from django.test import Client as Browser
from django.urls import URLResolver, get_resolver
from pytest_django import Settings

from config.gunicorn import POOL_SIZE
from config.local.processes import wait_until
from config.settings import api, backoffice
from tests import trading
from tests.backoffice.admin_client import sign_in
from tests.exchange.client import Client
from tests.live import ROOT, Server

DJANGOS_ORDER = [  # https://docs.djangoproject.com/en/5.2/ref/middleware/#middleware-ordering
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "csp.middleware.CSPMiddleware",
    "axes.middleware.AxesMiddleware",
]


def api_paths() -> list[str]:
    """Return one path for each pattern of the API."""
    packages = [each for each in get_resolver("config.urls").url_patterns if isinstance(each, URLResolver)]
    patterns = [str(pattern.pattern) for package in packages for pattern in package.url_patterns]
    values = {"uuid": "018f0000-0000-7000-8000-000000000000", "symbol": "AAPL", "key_prefix": "0" * 12}
    return sorted({"/" + re.sub(r"<(\w+):\w+>", lambda found: values.get(found[1], "x"), each) for each in patterns})


def test_the_back_office_has_djangos_middleware_in_the_documented_order() -> None:
    assert [
        each for each in backoffice.MIDDLEWARE if not each.startswith(("exchange.", "backoffice."))
    ] == DJANGOS_ORDER


def test_the_api_has_no_apps_and_no_middleware_for_users() -> None:
    loaded = " ".join([*api.INSTALLED_APPS, *api.MIDDLEWARE])
    for each in ("admin", "auth", "sessions", "messages", "axes", "otp", "unfold", "csp", "backoffice"):
        assert each not in loaded


@pytest.mark.processes
@pytest.mark.parametrize("inherited", [{}, {"DJANGO_SETTINGS_MODULE": "config.settings.backoffice"}])
def test_the_api_process_loads_no_module_of_the_back_office(inherited: dict[str, str]) -> None:
    program = "import sys, config.rsgi; print(*(name.partition('.')[0] for name in sys.modules))"
    environment = inherited | {"SECRET_KEY": "s", "PATH": "/usr/bin"}
    environment |= {"DATABASE_URL": "postgresql://127.0.0.1:1/none", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert not {"backoffice", "unfold", "axes", "django_otp", "csp"} & set(done.stdout.split())


@pytest.mark.django_db
def test_the_back_office_has_no_path_of_the_api(client: Browser) -> None:
    root, key = sign_in(client), trading.broker("alice")
    paths = api_paths()
    assert {"/orders", "/stocks/AAPL/book", "/healthz", "/docs", "/openapi.json"} <= set(paths)
    for path in paths:
        for method in ("GET", "POST", "DELETE"):
            response = root.generic(method, path, headers={"Authorization": f"Bearer {key}"})
            assert (response.status_code, response.headers["Content-Type"]) == (404, "text/html; charset=utf-8"), path


@pytest.mark.django_db
def test_the_root_of_the_back_office_redirects_to_the_dashboard(client: Browser) -> None:
    assert client.get("/").headers["Location"] == "/admin/"
    assert client.get("/admin").headers["Location"] == "/admin/"


# --- /admin/ at the API ---------------------------------------------------------------------------------------------

PATHS = ["/admin", "/admin/", "/admin/login/?next=/admin/", "/admin/orders/order/", "/admin/a%20b/"]


@pytest.mark.parametrize("path", PATHS)
def test_the_api_has_no_admin_by_default(path: str) -> None:
    anonymous = Client(None)
    assert anonymous.get(path).code == "not_found"
    assert anonymous.post(path, {}).code == "not_found"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_api_redirects_to_the_back_office_if_its_address_is_set(settings: Settings, method: str, path: str) -> None:
    settings.BACKOFFICE_URL = "http://127.0.0.1:8001"
    response = Client(None).request(method, path)
    assert (response.status, response.headers["Location"]) == (307, f"http://127.0.0.1:8001{path}")
    assert "Set-Cookie" not in response.headers


@pytest.mark.django_db(transaction=True)
def test_the_api_sets_and_reads_no_cookies(server: Server) -> None:
    headers = {"Cookie": "sessionid=of-somebody; csrftoken=a", "Authorization": f"Bearer {trading.broker('alice')}"}
    for method, path in [
        ("GET", "/docs"),
        ("GET", "/stocks"),
        ("GET", "/nothing"),
        ("POST", "/orders"),
        ("GET", "/admin/"),
    ]:
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=10)) as http:
            http.request(method, path, headers=headers)
            response = http.getresponse()
            assert (response.headers["Set-Cookie"], "Cookie" in response.headers.get("Vary", "")) == (None, False), path


@pytest.mark.django_db(transaction=True)
def test_each_server_has_only_its_own_paths(server: Server, backoffice: Server) -> None:
    statuses = {
        (name, path): status(each, path)
        for name, each in (("api", server), ("back office", backoffice))
        for path in ("/healthz", "/docs", "/admin/login/")
    }
    assert statuses == {
        ("api", "/healthz"): 200,
        ("api", "/docs"): 200,
        ("api", "/admin/login/"): 404,
        ("back office", "/healthz"): 404,
        ("back office", "/docs"): 404,
        ("back office", "/admin/login/"): 200,
    }


@pytest.mark.django_db(transaction=True)
def test_a_wrong_host_is_logged_without_a_traceback(backoffice: Server) -> None:
    before = backoffice.child.log.stat().st_size
    assert status(backoffice, "/admin/login/", {"Host": "elsewhere.example"}) == 400

    lines = backoffice.child.log.read_bytes()[before:].decode()
    assert "Invalid HTTP_HOST header: 'elsewhere.example'" in lines
    assert "Traceback" not in lines


@pytest.mark.django_db(transaction=True)
def test_the_back_office_survives_the_loss_of_its_connections(backoffice: Server) -> None:
    session = {"Cookie": "sessionid=of-nobody"}  # looked up in the database
    with ThreadPoolExecutor(POOL_SIZE) as threads:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE django_session")
            pages = [threads.submit(status, backoffice, "/admin/", session) for _ in range(POOL_SIZE)]
            wait_until(lambda: len(sessions_that_wait()) == POOL_SIZE, trading.TIMEOUT_SECONDS)
            pids = sessions_that_wait()
        assert [page.result() for page in pages] == [302] * POOL_SIZE
    with connection.cursor() as cursor:
        cursor.execute("SELECT bool_and(pg_terminate_backend(pid, 5000)) FROM unnest(%s) AS pid", [pids])
        assert cursor.fetchone() == (True,)

    assert [status(backoffice, "/admin/", session) for _ in range(POOL_SIZE)] == [302] * POOL_SIZE


def sessions_that_wait() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_locks WHERE relation = 'django_session'::regclass AND NOT granted")
        return [pid for (pid,) in cursor]


def status(server: Server, path: str, headers: Mapping[str, str] | None = None) -> int:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=10)) as http:
        http.request("GET", path, headers=headers or {})
        return http.getresponse().status
