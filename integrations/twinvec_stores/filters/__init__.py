"""Conditions on metadata, independent of any framework."""
