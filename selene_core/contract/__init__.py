"""What may be said: the event contract, its errors and the rows that come back. It knows no database."""
