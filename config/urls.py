"""The URL map: the packages' paths at the root, the admin under its own."""

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("exchange.urls")),
    path("", include("orders.urls")),
    path("", include("webhooks.urls")),
    path("admin/", admin.site.urls),
]

handler400 = "exchange.problems.bad_request"
handler403 = "exchange.problems.permission_denied"
handler404 = "exchange.problems.not_found"
handler500 = "exchange.problems.server_error"
