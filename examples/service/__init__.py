"""A service that books trips: an application (app), a worker, and what both do with an order (trips).

docs/howto/fastapi.md and docs/howto/workers.md show and explain it. `docker compose up` runs it.
"""
