"""Handlers: each reads the request, makes one call and serialises. Errors are the middleware's."""
