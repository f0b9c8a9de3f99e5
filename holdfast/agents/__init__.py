"""Agents: what works on a channel beside people, and where its words come from.

You are in `agents`, above `hub`. `sources` turns the streams of model SDKs into parts of a message.
"""
