"""Pictures to tensors and tensors to predictions: bytes and arrays in, arrays out.

::

    header ─► decode ─► (batcher ─► preprocess ─► the model ─► postprocess)
                                        │                          │
                          letterbox, center_crop        heads ─► nms, top_classes

Nothing in here knows of HTTP, Triton, Redis or Ray.
"""
