"""URLs of the API: the paths of the packages at the root, and redirects to the back office."""

from django.urls import include, path

from exchange.views import to_back_office

urlpatterns = [
    path("", include("orders.urls")),  # first, because patterns are tried in order
    path("", include("exchange.urls")),
    path("", include("webhooks.urls")),
    path("admin", to_back_office),
    path("admin/", to_back_office),
    path("admin/<path:rest>", to_back_office),
]

handler400 = "exchange.http.problems.bad_request"
handler403 = "exchange.http.problems.permission_denied"
handler404 = "exchange.http.problems.not_found"
handler500 = "exchange.http.problems.server_error"
