"""The pictures in docs/, drawn from a migrated database: `make docs`."""
