"""The acceptance tests, once more, on the given cluster."""
