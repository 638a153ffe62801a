"""One model in memory, shared by all its users."""
