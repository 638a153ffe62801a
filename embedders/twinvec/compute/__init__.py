"""The forward pass: the only part that touches a device."""
