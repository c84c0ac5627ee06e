"""The router of the API."""

from rest_framework.routers import Route, SimpleRouter


class Router(SimpleRouter):
    """Router without trailing slashes, with Django's path converters. `DELETE` of a list is `destroy_all`."""

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
