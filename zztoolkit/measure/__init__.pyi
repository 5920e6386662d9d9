from .profile import Plan as Plan
from .connections import Target as Target
from .load import Load as Load
from .levels import Level as Level
from .bottleneck import Verdict as Verdict
from .results import Benchmark as Benchmark
from .benchmark import bench as bench
from .compare import compare as compare, Comparison as Comparison
from .tuning.space import Knob as Knob
from .tuning.result import Tuning as Tuning
from .tuning.tuner import tune as tune
