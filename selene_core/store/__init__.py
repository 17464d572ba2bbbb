"""What a service calls: engines, tenant scopes, and repositories that send one statement a method."""
