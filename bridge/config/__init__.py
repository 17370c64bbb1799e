"""bridge.yaml: read with positions, checked, linted, and made into the plain values of core/spec."""
