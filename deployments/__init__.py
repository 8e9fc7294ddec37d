"""The Ray Serve deployments: one stage of a generation a file.

They know Ray and the engine; they know nothing of HTTP, jobs or how stages are composed.
"""
