"""bridge.yaml: read with positions, validated, linted, and converted to the plain values of planning/spec."""
