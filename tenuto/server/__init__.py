"""`tenuto serve`: uvicorn with bounds on unknown peers, and worker processes.

Layer: server.
"""
