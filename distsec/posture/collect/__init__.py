"""Reads what there is, bounded, and makes `facts` of it. Never raises for what it finds; never changes it."""
