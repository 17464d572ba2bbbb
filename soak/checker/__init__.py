"""What must be true of the tables and of what clients were told, computed in plain Python.

Nothing in here imports selene_core: a mistake there must not be repeated here.
"""
