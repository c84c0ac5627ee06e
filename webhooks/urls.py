from exchange.http import converters as converters  # registers them
from exchange.http.routers import Router
from webhooks import views

router = Router()
router.register("webhooks", views.WebhookViewSet)

urlpatterns = router.urls
