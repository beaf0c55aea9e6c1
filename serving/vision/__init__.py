"""Pictures to tensors and rows to boxes: bytes and arrays in, arrays out.

::

    header ─► decode ─► letterbox ─► (batcher ─► the model) ─► heads ─► nms ─► postprocess

Nothing in here knows of HTTP, Triton, Redis or Ray.
"""
