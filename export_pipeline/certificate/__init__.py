"""The parity certificate: that the exported file, and the gateway with it, answer as the checkpoint does.

::

    golden_pictures   the pictures that all are asked about
    measuring         asks the checkpoint and the exported file, in the isolated process
    measurements      what was measured, as it lies in the job's folder
    tensors           raw outputs, value by value
    agreement         predictions, one to one
    accuracy          mAP or top-k on labelled pictures, by one metric for all
    judging           all of it together, and whether it passes
    report            validation.json
"""
