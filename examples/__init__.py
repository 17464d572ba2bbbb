"""Programs to read: the tests run them."""
