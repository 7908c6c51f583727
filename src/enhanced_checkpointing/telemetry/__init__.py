"""The public door to telemetry: `configure_telemetry` in `telemetry.configure`. What is behind it is observability/."""
