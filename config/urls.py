"""The URL map: the packages' paths at the root, the admin under its own."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("orders.urls")),  # first, for they are tried in turn
    path("", include("exchange.urls")),
    path("", include("webhooks.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "exchange.http.problems.bad_request"
handler403 = "backoffice.refusals.permission_denied"
handler404 = "backoffice.refusals.not_found"
handler500 = "exchange.http.problems.server_error"
