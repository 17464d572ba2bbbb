"""The soak test: clients, a nemesis that kills what it can, and a checker that believes nobody."""
