"""The REST interface: an aiohttp application over the use cases."""
