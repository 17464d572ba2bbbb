"""Compare a database with what the migrations make: check_schema for services, doctor for operators."""
