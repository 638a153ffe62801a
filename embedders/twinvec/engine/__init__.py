"""One model in memory and everyone who uses it."""
