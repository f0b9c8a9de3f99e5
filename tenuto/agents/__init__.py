"""Agents: handlers that answer user messages, and the streams of model SDKs that they write.

Layer: agents, above `hub`. `sources` turns the streams of model SDKs into parts of a message.
"""
