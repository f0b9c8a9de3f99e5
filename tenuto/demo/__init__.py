"""The demo: one question, answered by a plain stream and by Tenuto side by side, and buttons that break both.

Layer: demo. No other part of the package imports this one, so all of it may change freely.
"""
