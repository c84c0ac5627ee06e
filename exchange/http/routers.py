"""The router of the API."""

from rest_framework.routers import Route, SimpleRouter


class Router(SimpleRouter):
    """Paths without a trailing slash, with Django's path converters; `DELETE` on a list is the action `destroy_all`."""

    routes = [
        Route(
            url="^{prefix}{trailing_slash}$",
            mapping={"get": "list", "post": "create", "delete": "destroy_all"},
            name="{basename}-list",
            detail=False,
            initkwargs={"suffix": "List"},
        ),
        *SimpleRouter.routes[1:],
    ]

    def __init__(self) -> None:
        super().__init__(trailing_slash=False, use_regex_path=False)
