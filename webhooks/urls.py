from django.urls import path

from exchange.http import converters as converters  # registers them
from webhooks import views

urlpatterns = [
    path("webhooks", views.WebhooksView.as_view()),
    path("webhooks/<id:webhook_id>", views.WebhookView.as_view()),
]
