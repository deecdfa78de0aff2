"""Simulated agents and core that speak the real protocol, with faults: for demo, tests and benchmarks."""
