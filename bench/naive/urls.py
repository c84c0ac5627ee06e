"""URLs of the naive matcher: only those that the load requests."""

from django.http import HttpResponse
from django.urls import path

from bench.naive import views

urlpatterns = [
    path("healthz", lambda request: HttpResponse()),
    path("orders", views.orders),
    path("orders/<uuid:order_id>", views.order),
]
