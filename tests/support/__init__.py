"""What the tests share: servers, sessions, calls, races, a model. No test is in here."""
