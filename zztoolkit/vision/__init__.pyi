from .geometry import (
    Decode as Decode,
    Resize as Resize,
    Letterbox as Letterbox,
    CenterCrop as CenterCrop,
    Crop as Crop,
    Pad as Pad,
    Flip as Flip,
    Rotate as Rotate,
    Warp as Warp,
)
from .pixels import (
    GaussianBlur as GaussianBlur,
    MedianBlur as MedianBlur,
    Morphology as Morphology,
    CvtColor as CvtColor,
    Equalize as Equalize,
    CLAHE as CLAHE,
    Threshold as Threshold,
    ToDtype as ToDtype,
    Normalize as Normalize,
    Apply as Apply,
)
from .chain import Chain as Chain, Plan as Plan
from .agreement import (
    Agreement as Agreement,
    PlanTolerance as PlanTolerance,
    choose_plan as choose_plan,
    measure_plan as measure_plan,
)
