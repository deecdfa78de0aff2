"""
Simulated agents and core that speak the real protocol, with faults: for demo, tests and benchmarks.

Here belongs what plays the poller's peers, and the development PKI; nothing that the poller itself needs.
"""
