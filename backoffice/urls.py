"""The URL map of the back office: the admin, where its root leads."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
]

handler400 = "backoffice.refusals.bad_request"
handler403 = "backoffice.refusals.permission_denied"
handler404 = "backoffice.refusals.not_found"
handler500 = "backoffice.refusals.server_error"
