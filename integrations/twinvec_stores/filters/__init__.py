"""Conditions on metadata, neutral of any framework."""
