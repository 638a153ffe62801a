"""The forward pass: only here is a device."""
