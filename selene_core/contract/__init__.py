"""The event contract, its errors, and the types of the rows that come back. Nothing here uses a database."""
