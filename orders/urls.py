from exchange.http import converters as converters  # registers them
from exchange.http.routers import Router
from orders import views

router = Router()
router.register("orders", views.OrderViewSet)
router.register("brokers/<broker_id:broker_id>/orders", views.BrokerOrderViewSet, "broker-order")
router.register("brokers/<broker_id:broker_id>/trades", views.BrokerTradeViewSet, "broker-trade")
router.register("stocks", views.MarketDataViewSet, "market-data")
router.register("stocks/<symbol:symbol>/trades", views.TapeViewSet, "tape")
router.register("brokers", views.BrokerStatusViewSet, "broker-status")

urlpatterns = router.urls
