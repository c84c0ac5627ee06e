"""Django's WSGI handler, with requests that no Content-Type can break."""

from typing import Any

from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.http import HttpResponse

_BROWSER_PATHS = ("/static/", "/docs")  # files and pages: Django's own way


class ExchangeRequest(WSGIRequest):
    """A request whose Content-Type is a media type, with the boundary of a form if it is one.

    JSON has no charset. Django and REST framework believe one all the same: names that Python knows (`rot13`) or
    stumbles over would make reading even the query string fail, before any of our code runs.
    """

    def _set_content_type_params(self, meta: dict[str, Any]) -> None:
        media_type, *parameters = meta.get("CONTENT_TYPE", "").split(";")
        boundaries = [each for each in parameters if each.strip().lower().startswith("boundary=")]
        meta["CONTENT_TYPE"] = ";".join([media_type.strip().lower(), *boundaries])
        super()._set_content_type_params(meta)  # type: ignore[misc]  # Django's own hook, unknown to its stubs


class ExchangeHandler(WSGIHandler):
    request_class = ExchangeRequest

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        """Answer, as Django's handler does but for the API without its signals.

        All that hangs on them for us is that the connection goes back to the pool, and under many threads sending them
        showed in every profile: they wait for one lock.
        """
        if environ["PATH_INFO"].startswith(_BROWSER_PATHS):
            return super().__call__(environ, start_response)
        response = self.get_response(self.request_class(environ))
        assert isinstance(response, HttpResponse)  # nothing of the API is sent piece by piece
        start_response(f"{response.status_code} {response.reason_phrase}", list(response.items()))
        return [response.content]
