"""Generated from proto/monitoring.proto by `make proto`; do not edit."""
