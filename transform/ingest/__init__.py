"""From an impression log to request examples, with Beam."""
