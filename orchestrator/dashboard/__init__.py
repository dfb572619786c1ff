"""The status page: plans as they stand, over the same use cases as the REST interface. It has no SQL of its own."""
