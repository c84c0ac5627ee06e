from django.urls import path

from exchange.http import converters as converters  # registers them
from orders import views

urlpatterns = [
    path("orders", views.OrdersView.as_view()),
    path("orders/batch", views.OrderBatchView.as_view()),
    path("orders/<id:order_id>", views.OrderView.as_view()),
    path("brokers/<broker_id:broker_id>/orders", views.BrokerOrdersView.as_view()),
    path("brokers/<broker_id:broker_id>/trades", views.BrokerTradesView.as_view()),
    path("brokers/<broker_id:broker_id>/suspend", views.SuspendView.as_view()),
    path("brokers/<broker_id:broker_id>/reinstate", views.ReinstateView.as_view()),
    path("stocks/<symbol:symbol>/price", views.PriceView.as_view()),
    path("stocks/<symbol:symbol>/book", views.BookView.as_view()),
    path("stocks/<symbol:symbol>/quote", views.QuoteView.as_view()),
    path("stocks/<symbol:symbol>/trades", views.TapeView.as_view()),
]
