"""How far an export may be from its checkpoint, by the precision it was made in."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from export_pipeline.facts import Facts
from export_pipeline.request import Precision

Share = Annotated[float, Field(ge=0, le=1)]


class Allowance(Facts):
    """A value may differ by atol + rtol * |the checkpoint's value|."""

    atol: Annotated[float, Field(ge=0)]
    rtol: Annotated[float, Field(ge=0)]


class Tolerances(Facts):
    """iou_min, confidence_max: of a prediction and its partner.

    The same two say how near a threshold is near: a prediction may be missing where its confidence is no
    more than confidence_max above what the other side leaves out, or where an IoU that decided on its
    suppression is no further than 1 - iou_min from the threshold. at_threshold_share: no more than this
    share of all predictions (but always one) may be excused so. disagreeing_share: no more than this share
    may disagree without an excuse.

    tensors: by the part of an output; `other` for parts that are not named.
    """

    iou_min: Share
    confidence_max: Share
    at_threshold_share: Share
    disagreeing_share: Share
    tensors: dict[str, Allowance]

    def for_part(self, part: str) -> Allowance:
        return self.tensors.get(part, self.tensors["other"])


# Of the sample detector, in single precision, boxes were off by 5e-4 pixels and scores by 1.2e-6; in half
# precision boxes by 0.6 pixels, scores by 0.002, and the least IoU was 0.98. The tolerances leave room for
# deeper networks and other processors. A black border instead of a grey one, BGR for RGB, or weights off by a
# ten-thousandth are far outside.
_EXACT = Allowance(atol=0, rtol=0)
_BY_PRECISION: dict[Precision, Tolerances] = {
    "fp32": Tolerances(
        iou_min=0.995,
        confidence_max=0.001,
        at_threshold_share=0.02,
        disagreeing_share=0,
        tensors={
            "boxes": Allowance(atol=0.02, rtol=1e-4),
            "scores": Allowance(atol=1e-4, rtol=1e-3),
            "classes": _EXACT,
            "other": Allowance(atol=2e-3, rtol=1e-3),
        },
    ),
    "fp16": Tolerances(
        iou_min=0.95,
        confidence_max=0.01,
        at_threshold_share=0.1,
        disagreeing_share=0.01,
        tensors={
            "boxes": Allowance(atol=1.0, rtol=0.02),
            "scores": Allowance(atol=0.01, rtol=0.02),
            "classes": _EXACT,
            "other": Allowance(atol=0.05, rtol=0.05),
        },
    ),
}


def tolerances_for(precision: Precision) -> Tolerances:
    return _BY_PRECISION[precision]
