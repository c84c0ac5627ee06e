"""The API's URL map: the packages' paths at the root, and the way to the back office."""

from django.urls import include, path

from exchange.views import to_back_office

urlpatterns = [
    path("", include("orders.urls")),  # first, for they are tried in turn
    path("", include("exchange.urls")),
    path("", include("webhooks.urls")),
    path("admin/", to_back_office),
    path("admin/<path:rest>", to_back_office),
]

handler400 = "exchange.http.problems.bad_request"
handler403 = "exchange.http.problems.permission_denied"
handler404 = "exchange.http.problems.not_found"
handler500 = "exchange.http.problems.server_error"
