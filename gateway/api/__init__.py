"""The control plane over ASGI: login, models, usage, administration, operations, documentation. `create_api` makes it."""

from gateway.api.app import create_api, stateless_routes

__all__ = ["create_api", "stateless_routes"]
