"""Django's WSGI handler, with requests that accept any Content-Type."""

from typing import Any

from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse

_BROWSER_PATHS = ("/static/", "/docs")  # files and pages, answered by Django's own handler


class ExchangeRequest(WSGIRequest):
    """A request with its method as it is written, and with a Content-Type of the media type and a boundary only.

    Methods are case-sensitive: no path supports `get`. JSON has no charset, but Django and REST framework apply one. An
    unsuitable one (`rot13`) would make even reading the query string fail, before any of our code runs.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self.method = environ["REQUEST_METHOD"]

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        media_type, *parameters = meta.get("CONTENT_TYPE", "").split(";")
        boundaries = [each for each in parameters if each.strip().lower().startswith("boundary=")]
        meta["CONTENT_TYPE"] = ";".join([media_type.strip().lower(), *boundaries])
        super()._set_content_type_params(meta)  # type: ignore[misc]  # Django's own hook, unknown to its stubs


class ExchangeHandler(WSGIHandler):
    request_class = ExchangeRequest

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Respond like Django's handler, but for the API without its request signals.

        Their only receiver that matters here returns the connection to the pool, which `run_in_thread` does. Sending
        them showed in every profile with many threads, because they wait for one lock.
        """
        if environ["PATH_INFO"].startswith(_BROWSER_PATHS):
            return super().__call__(environ, start_response)
        response = self.get_response(self.request_class(environ))
        assert isinstance(response, HttpResponse)  # the API streams nothing
        start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
        return [response.content]
