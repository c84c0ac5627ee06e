from django.urls import path

from exchange import views
from exchange.http import converters as converters  # registers them

urlpatterns = [
    path("brokers", views.BrokersView.as_view()),
    path("brokers/<broker_id:broker_id>/balance", views.BalanceView.as_view()),
    path("brokers/<broker_id:broker_id>/transfers", views.TransfersView.as_view()),
    path("brokers/<broker_id:broker_id>/keys", views.KeysView.as_view()),
    path("brokers/<broker_id:broker_id>/keys/<key_prefix:prefix>", views.KeyView.as_view()),
    path("stocks", views.StocksView.as_view()),
    path("stocks/<symbol:symbol>", views.StockView.as_view()),
    path("stocks/<symbol:symbol>/halt", views.HaltView.as_view()),
    path("stocks/<symbol:symbol>/resume", views.ResumeView.as_view()),
    path("healthz", views.HealthView.as_view()),
    path("readyz", views.ReadinessView.as_view()),
    path("openapi.json", views.OpenApiView.as_view()),
    path("docs", views.DocsView.as_view()),
]
