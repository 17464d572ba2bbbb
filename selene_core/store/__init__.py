"""What a service calls: engines, tenant scopes and repositories. Each method sends one statement."""
