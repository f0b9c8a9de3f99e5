"""The demo: one question, answered by a plain stream and by Tenuto side by side, and buttons that break both.

Layer: demo. Only the command `tenuto demo` imports it (`cli.main`), so all of it may change freely.
"""
