from exchange import views
from exchange.http import converters as converters  # registers them
from exchange.http.routers import Router

router = Router()
router.register("brokers", views.BrokerViewSet)
router.register("brokers/<broker_id:broker_id>/transfers", views.TransferViewSet)
router.register("brokers/<broker_id:broker_id>/keys", views.KeyViewSet)
router.register("stocks", views.InstrumentViewSet)
router.register("", views.SystemViewSet, "system")

urlpatterns = router.urls
