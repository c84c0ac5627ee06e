"""URLs of a server that streams what it is asked for, and tells what it did: beside those of the exchange."""

import resource
from collections import Counter
from collections.abc import Iterator
from itertools import count

from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.urls import path

from config.urls import handler400, handler403, handler404, handler500
from config.urls import urlpatterns as of_the_exchange
from exchange.streams import Stream

__all__ = ["handler400", "handler403", "handler404", "handler500", "urlpatterns"]

done: Counter[str] = Counter()


def pieces(request: HttpRequest) -> Stream:
    """So many pieces of so many bytes (none: without end), each made with the database's help; or it fails there."""
    number, size = int(request.GET.get("pieces", 0)), int(request.GET["size"])
    fails_at = int(request.GET.get("fails_at", 0))

    def made() -> Iterator[bytes]:
        done["begun"] += 1
        try:
            for each in range(1, number + 1) if number else count(1):
                if each == fails_at:
                    raise ZeroDivisionError
                with connection.cursor() as cursor:
                    cursor.execute("SELECT %s", [each])
                    (said,) = cursor.fetchone()
                done["made"] += 1
                yield str(said).rjust(size).encode()
        finally:
            done["ended"] += 1

    return Stream(made(), content_type="text/plain")


def told(request: HttpRequest) -> JsonResponse:
    pool = connection.pool.get_stats()  # type: ignore[attr-defined]  # PostgreSQL's has one
    in_use = pool["pool_size"] - pool["pool_available"]
    return JsonResponse({**done, "in_use": in_use, "max_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})


urlpatterns = [path("admin/pieces", pieces), path("admin/told", told), *of_the_exchange]
